"""What a mutant is: a text of one file, and another in its place."""

from dataclasses import dataclass
from pathlib import Path
from typing import final

__all__ = ["ROOT", "Mutant", "TextIsGoneError"]

ROOT = Path(__file__).parents[3]


class TextIsGoneError(Exception):
    """The file has changed: the mutant's text is not there exactly once."""


@final
@dataclass(frozen=True)
class Mutant:
    name: str
    planted: str
    """What is wrong with it, and what a user would see."""
    like: str
    """The fault that has been found before, of which kind it is: the commit that mended it, and its words."""
    file: str
    """Below aioblk/."""
    old: str
    """Occurs once in the file."""
    new: str

    @property
    def is_compiled(self) -> bool:
        return self.file.endswith(".c")

    def plant(self, package: Path) -> None:
        """Change the file in a copy of aioblk/."""
        path = package / self.file
        path.write_text(self.applied_to(path.read_text()))

    def applied_to(self, text: str) -> str:
        """The file with the fault in it. TextIsGoneError: it cannot be planted there."""
        if (found := text.count(self.old)) != 1:
            raise TextIsGoneError(
                f"{self.name}: its text is {found} times in aioblk/{self.file}. If what it was in has been"
                " rewritten, plant the same fault in what is there now"
            )
        return text.replace(self.old, self.new)
