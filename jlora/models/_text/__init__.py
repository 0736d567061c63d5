"""Text to tokens and back: the tokenizer of a model, and its template for conversations."""
