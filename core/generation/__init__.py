"""Text from a language model: sampling, beam search, whole texts or token by token."""
