"""Near-duplicates among photos, without labels.

fingerprints: codes and a small grey copy of each photo, kept in files to resume.
pairs: pairs and groups of near-duplicates, and their table.
page: the HTML page to look through the groups and to choose photos from them.
"""
