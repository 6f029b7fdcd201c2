"""Images to classify: files, folders, patterns, lists, archives, URIs, standard input; one by one.

Nothing is extracted to disk, and of folders, lists and tar archives no name is held longer than its
turn: a million paths need no more memory than a thousand.
"""

from fedapt_runtime.sources.archives import Member
from fedapt_runtime.sources.find import STDIN, Found, count_images, find_images

__all__ = ["STDIN", "Found", "Member", "count_images", "find_images"]
