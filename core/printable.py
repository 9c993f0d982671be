"""Text that came from outside, as it is shown on a terminal, in a page and in a model card.

Column names, class names, paths and keys can hold anything. An escape sequence among them could move the cursor, hide a
line or retitle the window; a lone surrogate cannot be encoded; a bidirectional mark reverses what follows it.
"""


def printable(text: str, keep: str = "") -> str:
    r"""The text with every character that is not printable written as Python writes it (`\x1b`), but those of `keep`.

    Applying it twice changes nothing more.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)
