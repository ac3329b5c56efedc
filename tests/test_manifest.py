from __future__ import annotations

from pathlib import Path

import pytest

from autoprune.errors import RunFolderError
from autoprune.manifest import Manifest, State
from autoprune.runfolder import RunFolder


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Dense weights, and an order of channels that was made from them."""
    manifest = Manifest(RunFolder(tmp_path))
    manifest.write(manifest.folder.dense, b"weights")
    manifest.write_json(manifest.folder.order, {"order": {}}, sources=[manifest.folder.dense])
    return manifest


def states(manifest: Manifest) -> dict[str, State]:
    return {file.name: file.state for file in manifest.states()}


def test_files_are_proven_by_their_digests(manifest: Manifest) -> None:
    folder = manifest.folder
    assert states(manifest) == {"dense.safetensors": State.PROVEN, "order.json": State.PROVEN}
    folder.form.write_text("{}")
    folder.order.write_text("{}")
    assert states(manifest) == {
        "dense.safetensors": State.PROVEN,
        "form.json": State.UNRECORDED,
        "order.json": State.CHANGED,
    }
    folder.order.unlink()
    assert states(manifest)["order.json"] is State.ABSENT


def test_what_was_made_from_an_older_file_is_stale_and_goes(manifest: Manifest) -> None:
    folder = manifest.folder
    manifest.write(folder.dense, b"other weights")
    assert [(file.name, file.state) for file in manifest.settle()] == [("order.json", State.STALE)]
    assert (folder.dense.exists(), folder.order.exists()) == (True, False)


def test_a_basis_that_was_changed_is_refused(manifest: Manifest) -> None:
    manifest.folder.dense.write_bytes(b"noise")
    for look in (manifest.settle, lambda: manifest.require(manifest.folder.dense)):
        with pytest.raises(RunFolderError, match=r"dense\.safetensors is not the file that this run wrote.*Restore"):
            look()


def test_a_basis_that_is_made_again_must_be_the_same_once_a_search_began(manifest: Manifest) -> None:
    folder = manifest.folder
    manifest.write_again(folder.dense, b"before any trial")
    folder.study.touch()
    folder.dense.unlink()
    with pytest.raises(RunFolderError, match="another than the one that the search began with"):
        manifest.write_again(folder.dense, b"other")
    manifest.write_again(folder.dense, b"before any trial")
    assert states(manifest)["dense.safetensors"] is State.PROVEN


@pytest.mark.parametrize("written", [b"weights", b"new weights"])
def test_a_kill_between_note_and_file_leaves_a_file_that_is_known(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, written: bytes
) -> None:
    def killed(path: Path, data: bytes) -> None:
        path.write_bytes(written)
        raise KeyboardInterrupt

    monkeypatch.setattr("autoprune.manifest.write_atomic", killed)
    with pytest.raises(KeyboardInterrupt):
        manifest.write(manifest.folder.dense, b"new weights")
    assert states(manifest)["dense.safetensors"] is State.PROVEN


@pytest.mark.parametrize(
    "files",
    [
        "[]", '{"../x": {"sha256": [], "made_from": {}}}', '{"/etc/x": {"sha256": [], "made_from": {}}}',
        '{"a": 1}', '{"a": {"sha256": [1], "made_from": {}}}', '{"a": {"sha256": []}}',
    ],
)  # fmt: skip
def test_a_damaged_manifest_is_one_message(tmp_path: Path, files: str) -> None:
    (tmp_path / "manifest.json").write_text(f'{{"schema": 1, "files": {files}}}')
    with pytest.raises(RunFolderError, match=r"manifest\.json is damaged"):
        Manifest(RunFolder(tmp_path)).states()
