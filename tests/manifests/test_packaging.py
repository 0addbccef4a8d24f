"""The manifests are part of the package: an installed wheel has every file that `galaxy install` reads."""

from __future__ import annotations

import configparser
import glob
from pathlib import Path

from kserve_ext.cli.knative.kustomize import MANIFESTS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "kserve_ext"


def test_the_package_is_a_link_to_the_folder_that_people_apply() -> None:
    assert MANIFESTS == PACKAGE / "manifests"
    assert MANIFESTS.resolve() == ROOT / "manifests"


def test_every_manifest_is_package_data() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    patterns = setup["options.package_data"]["kserve_ext"].split()
    packed = {f for pattern in patterns for f in glob.glob(str(PACKAGE / pattern), recursive=True)}
    assert packed == {str(file) for file in MANIFESTS.rglob("*.yaml")}
