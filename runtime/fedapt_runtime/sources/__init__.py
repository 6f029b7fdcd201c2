"""Images to classify: files, folders, patterns, lists, archives, URIs, standard input; one by one.

Nothing is extracted to disk. Names from folders, lists and tar archives are not collected, so a
million paths need no more memory than a thousand.
"""

from fedapt_runtime.sources.archives import Member
from fedapt_runtime.sources.find import STDIN, Found, count_images, find_images

__all__ = ["STDIN", "Found", "Member", "count_images", "find_images"]
