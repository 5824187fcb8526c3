"""Where the files of a model lie: a folder of this machine, or a repository of the hub."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from restack.llama.meta_layout import is_meta_folder
from restack.recipes.reference import Reference

CONFIG = "config.json"
SNAPSHOTS = "snapshots"  # in the cache of the hub: the folder that has one folder a commit


@dataclass(frozen=True, slots=True)
class Location:
    """A folder, or a repository of the hub at one revision, perhaps a folder in it."""

    name: str  # of the folder or the repository
    revision: str | None = None
    subfolder: str = ""

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine, and not to be looked for on the hub."""
        return os.path.exists(self.name)  # noqa: PTH110  (Path.exists raises OSError on long names)

    @property
    def folder(self) -> Path:
        """The folder, of a model that is on this machine."""
        return Path(self.name, self.subfolder)

    @property
    def is_metas(self) -> bool:
        """Whether it is a folder with Meta's own files, and none that transformers reads."""
        return self.is_local and self.file(CONFIG) is None and is_meta_folder(self.folder)

    @property
    def options(self) -> dict[str, Any]:
        """What `from_pretrained` takes beside the name."""
        options: dict[str, Any] = {"revision": self.revision}
        return options | {"subfolder": self.subfolder} if self.subfolder else options

    def file(self, name: str) -> Path | None:
        """A file of the model that is on this machine, fetched from the hub before if it is of the hub."""
        if self.is_local:
            path = self.folder / name
            return path if path.is_file() else None
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        name = f"{self.subfolder}/{name}" if self.subfolder else name
        try:
            found = try_to_load_from_cache(self.name, name, revision=self.revision)
        except HFValidationError:  # a name that no repository can have
            return None
        return Path(found) if isinstance(found, str) else None

    def at_commit(self) -> "Location":
        """The same at the commit that its revision stands for, if what was fetched from the hub tells it."""
        file = None if self.is_local else self.file(CONFIG)
        if file is None:
            return self
        commit = file.parts[len(file.parts) - file.parts[::-1].index(SNAPSHOTS)]
        return replace(self, revision=commit)

    def commits(self) -> list[str]:
        """The commits of a repository that have been fetched from the hub, that of its main branch first."""
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=self.name, repo_type="model"))
        main = folder / "refs" / "main"
        first = main.read_text() if main.is_file() else None
        there = [place.name for place in folder.glob(f"{SNAPSHOTS}/*")]
        return sorted(there, key=lambda commit: (commit != first, commit))

    def relative(self, name: str) -> "Location":
        """Another model by its name; a name that begins with a dot is looked for from here."""
        if not name.startswith("."):
            return Location(Reference(name).location)
        if self.is_local:
            return Location(os.path.normpath(self.folder / name))
        inside = os.path.normpath(f"/{self.subfolder}/{name}").strip("/")  # never above the repository
        return Location(self.name, self.revision, inside)

    def __str__(self) -> str:
        place = f"{self.name}/{self.subfolder}" if self.subfolder else self.name
        return place if self.revision is None else f"{place} at {self.revision}"
