"""The web page and the JSON API of a finished run."""
