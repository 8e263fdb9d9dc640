"""Static files under names that hold their digest, so that browsers may keep them for ever."""

from typing import ClassVar

from whitenoise.storage import CompressedManifestStaticFilesStorage

IMPORT = (r"""(?P<matched>from "(?P<url>\./[^"]+)")""", 'from "%(url)s"')


class StaticFilesStorage(CompressedManifestStaticFilesStorage):
    """Our scripts import one another by those names too: a page never gets parts of two versions.

    (Django's own switch for this looks at every script, and packages ship some with imports that lead nowhere.)
    """

    patterns: ClassVar = (*CompressedManifestStaticFilesStorage.patterns, ("annotate/*.js", (IMPORT,)))
