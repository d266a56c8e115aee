"""Which launcher the lab lays, and which of its tests are then left out. Needs no docker."""

from __future__ import annotations

import pytest

from tests.conftest import PROJECT
from tests.lab.conftest import launcher, shape_of
from tests.lab.engine import LabError
from tests.lab.lab import SHAPES, Lab

GIVEN = "#!/bin/bash\necho 'start | stop | status | exec'\n: {}\nexit 1\n"


@pytest.fixture
def real(tmp_path):
    """A folder of a launcher that is none of the stand-ins, with a file beside it."""
    (tmp_path / "mods").mkdir()
    (tmp_path / "mods/run.sh").write_text("#!/bin/bash\n")
    (tmp_path / "launch-cluster.sh").write_text(GIVEN)
    (tmp_path / "launch-cluster.sh").chmod(0o755)
    return tmp_path


def test_a_stand_in_is_a_folder_that_works_by_itself(monkeypatch, tmp_path):
    monkeypatch.delenv("LAUNCHER_DIR", raising=False)
    for shape in SHAPES:
        folder = tmp_path / shape / "home/spark-vllm-docker"
        folder.mkdir(parents=True)
        (tmp_path / shape / "address").write_text("127.0.0.11\n")
        for name, (content, mode) in Lab().launcher_files(shape).items():
            (folder / name).write_bytes(content)
            (folder / name).chmod(mode)
        assert shape_of(str(folder)) == shape
    assert Lab(launcher="january").launcher_files() == Lab().launcher_files("january")
    with pytest.raises(LabError, match="february is none of october, september, january"):
        Lab().launcher_files("february")


@pytest.mark.parametrize("wanted", [None, *SHAPES, str(PROJECT)])
def test_the_folder_of_the_real_project_is_laid_whatever_is_asked_for(monkeypatch, real, wanted):
    monkeypatch.setenv("LAUNCHER_DIR", str(real))
    assert Lab().launcher_files(wanted) == {
        "launch-cluster.sh": (GIVEN.encode(), 0o755),
        "mods/run.sh": (b"#!/bin/bash\n", 0o644),
    }


@pytest.mark.parametrize(
    ("words", "shape"),
    [("", "january"), ("--launch-script", "september"), ("--launch-script (matching image content)", "october")],
)
def test_a_test_for_another_shape_than_the_given_one_is_skipped_and_says_why(monkeypatch, real, words, shape):
    (real / "launch-cluster.sh").write_text(f"#!/bin/bash\necho 'exec {words}'\nexit 1\n")
    monkeypatch.setenv("LAUNCHER_DIR", str(real))
    for wanted in SHAPES:
        if wanted == shape:
            assert chosen(param=wanted) == wanted
        else:
            with pytest.raises(pytest.skip.Exception, match=f"for the launcher of {wanted}.* like that of {shape}"):
                chosen(param=wanted)
    others = [other for other in SHAPES if other != shape]
    with pytest.raises(pytest.skip.Exception, match=f"for the launcher of {' or '.join(others)}"):
        chosen(*others)
    assert chosen(*SHAPES) == shape
    assert chosen() is None


def test_without_a_folder_nothing_is_left_out(monkeypatch):
    monkeypatch.delenv("LAUNCHER_DIR", raising=False)
    assert [chosen(param=shape) for shape in SHAPES] == list(SHAPES)
    assert [chosen(), chosen("january", "october")] == [None, "january"]


def chosen(*marked: str, **request) -> str | None:
    """What the fixture `launcher` says to a test with that mark, or with that `param`."""
    mark = pytest.mark.launcher(*marked).mark if marked else None
    node = type("Node", (), {"get_closest_marker": lambda self, name: mark})()
    return launcher.__wrapped__(type("Request", (), {"node": node, **request})(), None)
