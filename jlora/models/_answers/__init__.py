"""Answers: the loop over tokens (`_generate`), how the next one is drawn (`_sampling`), where it
ends (`_stops`), and the text as it comes (`_stream`).
"""
