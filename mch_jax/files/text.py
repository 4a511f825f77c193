"""Text for terminals."""


def printable(text: str, keep: str = "") -> str:
    r"""Returns a text without the characters that would control a terminal.

    Names of photos and contents of files may hold such characters. They are replaced by what Python
    writes for them, such as `\x1b`.

    Args:
      text: The text.
      keep: Characters that are not replaced, such as the ends of lines.
    """
    return "".join(x if x.isprintable() or x in keep else repr(x)[1:-1] for x in text)
