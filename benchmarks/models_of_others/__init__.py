"""Do models that others wrote work as they are, and what of them stays factored?"""
