"""Print the lowest versions that pyproject.toml promises, as constraints for pip."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = project["optional-dependencies"]
for requirement in [*project["dependencies"], *extras["bench"], *extras["serve"], *extras["ray"]]:
    if lowest := re.match(r"([\w-]+)(?:\[\w+\])?>=([\w.]+)", requirement):
        print("{}=={}".format(*lowest.groups()))
