"""Files of tensors with a record: written whole, and damaged ones refused in words."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from qi.errors import FileFormatError, InputError, UnsupportedError
from qi.torch import stored
from qi.torch.stored import read, write

RECORD = {"class": "Net", "calls": [["fc", "Linear"]]}
SUFFIXES = (".pt", ".pth", ".safetensors")


def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 4, generator=generator)
    codes = torch.arange(12, dtype=torch.uint8)
    return {
        "weight": weight,
        "tied": weight,
        "transposed": weight.T,
        "part": torch.randn(1000, generator=generator)[:2],
        "half": weight.to(torch.bfloat16),
        "codes": codes,
        "codes again": codes.clone(),
        "count": torch.tensor(7),
        "none": torch.zeros(0, 3),
        "mask": torch.tensor([True, False]),
    }


def written(folder: Path, suffix: str) -> Path:
    return write(folder / f"file{suffix}", RECORD, state())


def changed(path: Path, **changes: object) -> Path:
    """The file with another record."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            document = json.loads(file.metadata()["qi"])
        save_file(load_file(path), path, metadata={"qi": json.dumps(document | changes)})
    else:
        held = torch.load(path, weights_only=True)
        torch.save(held | {"qi": json.dumps(json.loads(held["qi"]) | changes)}, path)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_tensors_and_record_come_back(tmp_path, suffix):
    record, found = read(written(tmp_path, suffix))
    assert record == RECORD
    assert list(found) == list(state())
    for name, tensor in state().items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_state_gives_the_same_bytes(tmp_path, suffix):
    first, second = (write(tmp_path / f"{name}{suffix}", RECORD, state()) for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_what_is_shared_and_equal_codes_are_written_once(tmp_path):
    with safe_open(written(tmp_path, ".safetensors"), framework="pt") as file:
        assert {"tied", "codes again"}.isdisjoint(file.keys())
        assert {"weight", "transposed", "codes"} <= set(file.keys())
    with zipfile.ZipFile(written(tmp_path, ".pt")) as archive:
        sizes = [entry.file_size for entry in archive.infolist() if "/data/" in entry.filename]
    assert len(sizes) == len(state()) - 2
    assert max(sizes) == 48  # and the slice without the rest of its memory


def test_torch_reads_a_pt_file_as_plain_tensors(tmp_path):
    held = torch.load(written(tmp_path, ".pt"), weights_only=True)
    assert set(held) == {"qi", "state_dict"}
    assert list(held["state_dict"]).count("tied") == 1
    assert torch.equal(held["state_dict"]["weight"], state()["weight"])


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9, 0.999])
def test_truncated_files(tmp_path, suffix, keep):
    path = written(tmp_path, suffix)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(FileFormatError, match=f"file{suffix}"):
        read(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_byte_of_a_tensor_can_change_unseen(tmp_path, suffix):
    path = written(tmp_path, suffix)
    data = path.read_bytes()
    at = data.index(state()["weight"].numpy().tobytes()) + 5
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(FileFormatError, match="damaged"):
        read(path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_changed_records(tmp_path, suffix):
    def told(**changes: object) -> str:
        with pytest.raises(FileFormatError) as caught:
            read(changed(written(tmp_path, suffix), **changes))
        return str(caught.value)

    assert "version=2" in told(version=2, qi="9.0")
    assert "'9.0'; do update quantizers-infrastructure" in told(version=2, qi="9.0")
    assert "version=True" in told(version=True)
    assert "another format" in told(format="else")
    assert "'digest'" in told(digest=3)
    assert "damaged" in told(record=RECORD | {"class": "Other"})
    kinds = {name: [str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in state().items()}
    assert "without ['more']" in told(tensors=kinds | {"more": ["float32", [1]]})
    assert "['mask'] besides" in told(tensors={name: kind for name, kind in kinds.items() if name != "mask"})
    assert "expected 'part' to be ['float32', [3]]" in told(tensors=kinds | {"part": ["float32", [3]]})
    assert "stand for none" in told(same={"tied": "nothing", "codes again": "codes"})


def test_a_record_may_not_be_endless(tmp_path, monkeypatch):
    path = written(tmp_path, ".pt")
    monkeypatch.setattr(stored, "MAX_RECORD", 100)
    with pytest.raises(FileFormatError, match="at most 100 bytes"):
        read(path)
    with pytest.raises(InputError, match="at most 100 bytes"):
        write(path, RECORD, {})


def test_foreign_files(tmp_path):
    torch.save(state(), tmp_path / "plain.pt")
    with pytest.raises(FileFormatError, match="without the record 'qi', which holds plain weights"):
        read(tmp_path / "plain.pt")
    save_file({"weight": torch.ones(2)}, tmp_path / "plain.safetensors")
    with pytest.raises(FileFormatError, match="without the record 'qi'"):
        read(tmp_path / "plain.safetensors")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")  # a pickled module, which nothing here runs
    with pytest.raises(FileFormatError, match="UnpicklingError") as caught:
        read(tmp_path / "module.pt")
    assert "weights_only" not in str(caught.value)
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(FileFormatError, match="without the record"):
        read(tmp_path / "list.pt")
    text = torch.load(written(tmp_path, ".pt"), weights_only=True)["qi"]
    torch.save({"qi": text, "state_dict": [1]}, tmp_path / "list.pt")
    with pytest.raises(FileFormatError, match="'state_dict'"):
        read(tmp_path / "list.pt")
    torch.save({"qi": "[" * 100_000, "state_dict": {}}, tmp_path / "deep.pt")
    with pytest.raises(FileFormatError, match="JSON"):
        read(tmp_path / "deep.pt")


def test_tensors_that_claim_more_than_they_hold(tmp_path):
    path = written(tmp_path, ".pt")
    held = torch.load(path, weights_only=True)
    held["state_dict"]["weight"] = torch.zeros(1).expand(3, 4)
    torch.save(held, path)
    with pytest.raises(FileFormatError, match="expected 'weight' to be"):
        read(path)


def test_a_compressed_archive_is_not_unpacked(tmp_path):
    path = written(tmp_path, ".pt")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/99", bytes(10**6))
    with pytest.raises(FileFormatError, match="unpacks to"):
        read(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failure_leaves_the_old_file(tmp_path, suffix):
    path = written(tmp_path, suffix)
    before = path.read_bytes()
    with pytest.raises(InputError, match="'gone' on the meta device"):
        write(path, RECORD, {"gone": torch.empty(2, device="meta")})
    with pytest.raises(UnsupportedError, match="'more', a str"):
        write(path, RECORD, {"more": "text"})
    with pytest.raises(UnsupportedError, match="'sparse', a tensor of layout"):
        write(path, RECORD, {"sparse": torch.eye(2).to_sparse()})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_types_that_one_format_does_not_hold(tmp_path):
    wide = {"weight": torch.ones(2, dtype=torch.complex128)}
    with pytest.raises(InputError, match=r"complex128.*do write a .pt file"):
        write(tmp_path / "file.safetensors", RECORD, wide)
    assert torch.equal(read(write(tmp_path / "file.pt", RECORD, wide))[1]["weight"], wide["weight"])


def test_paths(tmp_path):
    with pytest.raises(InputError, match=r"\.safetensors, \.pt, \.pth; received .*file.bin"):
        write(tmp_path / "file.bin", RECORD, {})
    with pytest.raises(InputError, match="doesn't exist"):
        read(tmp_path / "file.pt")
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "no folder" / "file.pt", RECORD, {})
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(IsADirectoryError):
        write(tmp_path / "folder.pt", RECORD, {})
    with pytest.raises(IsADirectoryError):
        read(tmp_path / "folder.pt")
