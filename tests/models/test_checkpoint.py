from __future__ import annotations

import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from structsam_export.errors import CheckpointError
from structsam_export.models.checkpoint import read_state_dict
from structsam_export.models.demo import build_demo
from structsam_export.models.fit import load_into

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.tensor([1.5, -2.0], dtype=torch.float16)}
EMBED = "image_encoder.patch_embed.proj.weight"


def assert_same(state, expected):
    assert list(state) == list(expected)
    for name, weights in expected.items():
        assert state[name].dtype == weights.dtype
        assert torch.equal(state[name], weights)


def refused(path, *words):
    with pytest.raises(CheckpointError) as caught:
        read_state_dict(path)
    for word in (str(path), *words):
        assert word in str(caught.value)


class Attack:
    """Creates a file when unpickled by pickle itself."""

    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return open, (str(self.victim), "w")


# --- files that can be read -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w"])
def test_the_content_decides_not_the_extension(tmp_path, name):
    path = tmp_path / name
    torch.save(WEIGHTS, path)
    assert_same(read_state_dict(path), WEIGHTS)
    save_file(WEIGHTS, path)
    assert_same(dict(sorted(read_state_dict(path).items(), reverse=True)), WEIGHTS)


def test_old_torch_format(tmp_path):
    torch.save(WEIGHTS, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    assert_same(read_state_dict(tmp_path / "w.pth"), WEIGHTS)


def test_a_zip_that_was_packed_again_with_compression(tmp_path):
    torch.save(WEIGHTS, tmp_path / "w.pth")
    with (
        zipfile.ZipFile(tmp_path / "w.pth") as old,
        zipfile.ZipFile(tmp_path / "z.pth", "w", zipfile.ZIP_DEFLATED) as z,
    ):
        for entry in old.namelist():
            z.writestr(entry, old.read(entry))
    assert_same(read_state_dict(tmp_path / "z.pth"), WEIGHTS)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"model": s, "optimizer": {"state": {}, "lr": 0.1}, "epoch": 3},
        lambda s: {"state_dict": s},
        lambda s: {"model_state_dict": s, "loss": 0.5},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {"model": {f"module.{k}": v for k, v in s.items()}},
        lambda s: {"model": {"state_dict": s}},
        lambda s: {**s, "epoch": 3},
        lambda s: {k: torch.nn.Parameter(v) for k, v in s.items()},
    ],
)
def test_training_checkpoints_are_unwrapped(tmp_path, wrap):
    torch.save(wrap(WEIGHTS), tmp_path / "w.pth")
    state = read_state_dict(tmp_path / "w.pth")
    assert_same(state, WEIGHTS)
    assert not any(v.requires_grad for v in state.values())


SAM_LIKE = {EMBED: torch.ones(2, 3, 1, 1), "mask_decoder.iou_token.weight": torch.ones(1)}


@pytest.mark.parametrize("wrapper", ["model_state", "net", "network", "sam", "ema", "params"])
@pytest.mark.parametrize("prefix", ["", "model.", "sam.", "_orig_mod.", "module.model.", "model._orig_mod.", "my.own."])
def test_wrappers_and_prefixes_of_training_scripts(tmp_path, wrapper, prefix):
    torch.save({wrapper: {f"{prefix}{k}": v for k, v in SAM_LIKE.items()}, "epoch": 3}, tmp_path / "w.pth")
    assert_same(read_state_dict(tmp_path / "w.pth"), SAM_LIKE)
    save_file({f"{prefix}{k}": v for k, v in SAM_LIKE.items()}, tmp_path / "w.safetensors")
    assert read_state_dict(tmp_path / "w.safetensors").keys() == SAM_LIKE.keys()


@pytest.mark.parametrize("part", ["_orig_mod.", "module."])
def test_parts_that_were_wrapped(tmp_path, part):
    state = {k.replace(".", f".{part}", 1): v for k, v in SAM_LIKE.items()}
    torch.save(state, tmp_path / "w.pth")
    assert_same(read_state_dict(tmp_path / "w.pth"), SAM_LIKE)


def test_weights_win_over_what_lies_beside_them(tmp_path):
    torch.save({**SAM_LIKE, "state": {"lr": torch.ones(1)}, "model": {"x": torch.ones(1)}}, tmp_path / "w.pth")
    assert_same(read_state_dict(tmp_path / "w.pth"), SAM_LIKE)


def test_plain_values_beside_weights(tmp_path):
    import argparse
    import pathlib

    import numpy as np

    beside = {
        "args": argparse.Namespace(lr=0.1, out=pathlib.Path("a"), nested={"x": np.float64(2)}),
        "best": np.float64(0.5),
        "epoch": np.int32(3),
        "losses": np.arange(3.0),
        "rng": np.random.default_rng(0).integers(0, 9, 4),
        "names": np.array(["a", "b"]),
    }
    for zipped in (True, False):
        torch.save({"model": SAM_LIKE, **beside}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
        assert_same(read_state_dict(tmp_path / "w.pth"), SAM_LIKE)


def test_a_prefix_on_some_keys_only_stays(tmp_path):
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "w.pth")
    assert list(read_state_dict(tmp_path / "w.pth")) == ["module.a", "b"]


def test_weights_do_not_write_to_the_file(tmp_path):
    torch.save(WEIGHTS, tmp_path / "w.pth")
    before = (tmp_path / "w.pth").read_bytes()
    read_state_dict(tmp_path / "w.pth")["a.weight"].zero_()
    assert (tmp_path / "w.pth").read_bytes() == before


# --- files that cannot ------------------------------------------------------------------------------------------


def test_missing_file(tmp_path):
    refused(tmp_path / "w.pth", "does not exist", "--checkpoint")


def test_folder(tmp_path):
    refused(tmp_path, "is a folder without model.safetensors", "Pass the checkpoint file inside it")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "git lfs pull"),
        (b"epoch,loss\n1,0.5\n", "text file that begins with 'epoch,loss"),
        (b'{"weights": "' + b"a" * 99, "text file"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "neither safetensors nor a PyTorch file"),
        (b"PK\x03\x04" + b"\0" * 40, "damaged or incomplete"),
        (b"\x80\x02", "damaged or incomplete"),
    ],
)
def test_not_a_checkpoint(tmp_path, content, words):
    (tmp_path / "w.pth").write_bytes(content)
    refused(tmp_path / "w.pth", words)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["torch", "old torch", "safetensors"])
def test_truncated(tmp_path, kind, share):
    path, weights = tmp_path / "w.pth", {"a": torch.ones(4000), "b": torch.ones(4000)}
    if kind == "safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=kind == "torch")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    refused(path, "damaged or incomplete", f"({int(len(whole) * share):,} bytes)", "--checkpoint")


def test_a_zip_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("photo.txt", "cat")
    refused(tmp_path / "w.pth", "zip archive without PyTorch weights")


def test_torchscript_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"model/{name}", "")
    refused(tmp_path / "w.pt", "TorchScript", "safetensors")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_does_not_run(tmp_path, zipped):
    victim, path = tmp_path / "victim", tmp_path / "w.pth"
    torch.save({"model": WEIGHTS, "extra": Attack(victim)}, path, _use_new_zipfile_serialization=zipped)
    refused(path, "pickled Python objects", "open", "plain state dict", "safetensors")
    assert not victim.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_bare_malicious_pickle_does_not_run(tmp_path):
    victim, path = tmp_path / "victim", tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps(Attack(victim)))
    refused(path)
    assert not victim.exists()
    pickle.loads(path.read_bytes()).close()
    assert victim.exists()  # the attack itself works


def test_a_whole_module_is_refused_by_name(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "w.pth")
    refused(tmp_path / "w.pth", "pickled Python objects (torch.nn.modules.linear.Linear)")


def test_no_tensors(tmp_path):
    path = tmp_path / "w.pth"
    for content, words in (
        ({}, "no tensors, nothing"),
        ({"epoch": 1, "loss": 0.5}, "only epoch, loss"),
        ({i: i for i in range(11)}, "5, 6, 7, ... (3 more)"),
        ([1, 2], "a list, not a state dict"),
        (torch.ones(2), "a Tensor, not a state dict"),
    ):
        torch.save(content, path)
        refused(path, words)
    save_file({}, path)
    refused(path, "no tensors, nothing")


def test_a_dict_inside_itself(tmp_path):
    endless = {}
    endless["model"] = endless
    torch.save(endless, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", "no tensors")


def odd_tensors():
    """Name of a kind of tensor, how to make one, and what is said of it."""
    return [
        ("sparse", lambda: torch.eye(3).to_sparse(), "not dense"),
        ("csr", lambda: torch.eye(3).to_sparse_csr(), "not dense"),
        ("meta", lambda: torch.ones(3, device="meta"), "without values"),
        ("quantised", lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "quantised"),
        ("nested", lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "nested"),
        ("huge", lambda: torch.ones(1).expand(2**31), "the file holds 4 bytes"),
        ("huge stride", lambda: torch.ones(3).as_strided((1 << 13, 1 << 13), (0, 0)), "the file holds 12 bytes"),
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [EMBED, "pixel_mean", "\x1b[31m\nodd"])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(("make", "words"), [case[1:] for case in odd_tensors()], ids=[c[0] for c in odd_tensors()])
def test_odd_tensors_are_refused_without_touching_them(tmp_path, make, words, zipped, name):
    try:
        torch.save({**SAM_LIKE, name: make()}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    except Exception as error:
        pytest.skip(f"cannot be saved: {error}")
    with pytest.raises(CheckpointError) as caught:
        read_state_dict(tmp_path / "w.pth")
    said = str(caught.value)
    assert "\x1b" not in said
    assert words in said or "damaged" in said or "pickled" in said  # torch.load itself may refuse
    assert (tmp_path / "w.pth").stat().st_size < 20_000


def test_a_shape_that_the_file_does_not_hold(tmp_path):
    torch.save({**SAM_LIKE, "pixel_mean": torch.ones(1).expand(2**31)}, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", "pixel_mean is of shape (2147483648,), while the file holds 4 bytes of it")


def test_numbers_of_four_bits(tmp_path):
    import json

    head = json.dumps({"a": {"dtype": "F4", "shape": [2, 2], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "w.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + b"\0\0")
    with pytest.raises(CheckpointError):
        load_into(build_demo(), read_state_dict(tmp_path / "w.safetensors"), tmp_path / "w.safetensors", "demo")
    head = head.replace(b'"F4"', b'"F3"')
    (tmp_path / "w.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + b"\0\0")
    refused(tmp_path / "w.safetensors")


def test_an_index_of_sharded_weights_under_another_name(tmp_path):
    index = tmp_path / "w.json"
    index.write_text('{"metadata": {"total_size": 5}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}')
    refused(index, "is the index of sharded weights under another name")


def test_a_small_file_that_unpacks_to_a_huge_one(tmp_path, monkeypatch):
    monkeypatch.setattr("structsam_export.models.checkpoint.BOMB", 1000)
    with zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", b"\0" * 1_000_000)
    refused(tmp_path / "w.pth", "would unpack")


@pytest.mark.parametrize("make", ["loop", "pipe", "long", "zero"])
def test_what_is_no_file(make, tmp_path):
    import os

    path = tmp_path / {"long": "a" * 300, "zero": "a\0b"}.get(make, "w.pth")
    if make == "loop":
        path.symlink_to(path)
    elif make == "pipe":
        os.mkfifo(path)
    with pytest.raises(CheckpointError, match="cannot be read|no regular file|no path"):
        read_state_dict(path)


# --- fitting a model --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    return build_demo().state_dict()


@pytest.fixture
def sam():
    with torch.device("meta"):
        return build_demo()


def misfit(sam, state, tmp_path):
    """The message; also checks that the model was left alone."""
    with pytest.raises(CheckpointError) as caught:
        load_into(sam, state, tmp_path / "w.pth", "demo")
    assert all(v.is_meta for v in sam.state_dict().values())
    assert str(tmp_path / "w.pth") in str(caught.value)
    return str(caught.value)


def test_half_precision_weights_become_float32(sam, weights, tmp_path):
    load_into(sam, {k: v.half() for k, v in weights.items()}, tmp_path, "demo")
    for name, loaded in sam.state_dict().items():
        assert loaded.dtype == torch.float32
        assert torch.equal(loaded, weights[name].half().float())
    assert not any(t.is_meta for t in (*sam.parameters(), *sam.buffers()))


def test_saved_normalisation_constants_are_tolerated(sam, weights, tmp_path):
    constants = {k: getattr(build_demo(), k).bfloat16() for k in ("pixel_mean", "pixel_std")}
    load_into(sam, {**weights, **constants}, tmp_path, "demo")
    assert sam.pixel_mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])


@pytest.mark.parametrize("mean", [torch.zeros(3, 1, 1), torch.ones(1), torch.full((3,), float("nan"))])
def test_other_normalisation_constants_are_refused(sam, weights, tmp_path, mean):
    assert "pixel_mean" in misfit(sam, {**weights, "pixel_mean": mean}, tmp_path)


@pytest.mark.parametrize(("rows", "name"), [(768, "vit_b"), (1024, "vit_l"), (1280, "vit_h")])
def test_another_architecture_is_named(sam, weights, tmp_path, rows, name):
    message = misfit(sam, {**weights, EMBED: torch.zeros(rows, 3, 16, 16)}, tmp_path)
    assert f"this looks like a {name} checkpoint: pass --model {name}" in message
    assert ("medsam" in message) == (name == "vit_b")


def test_demo_weights_for_vit_b_are_named(weights, tmp_path):
    from segment_anything import sam_model_registry

    with torch.device("meta"):
        sam = sam_model_registry["vit_b"](checkpoint=None)
    with pytest.raises(CheckpointError, match="model 'vit_b': this looks like a demo checkpoint: pass --model demo"):
        load_into(sam, weights, tmp_path, "vit_b")


def test_missing_unexpected_and_wrong_shapes_are_listed(sam, weights, tmp_path):
    state = dict(weights)
    gone = [k for k in weights if k.startswith("mask_decoder.")][:10]
    for name in gone:
        del state[name]
    state["mask_decoder.hf_token.weight"] = torch.zeros(1, 256)
    state["image_encoder.pos_embed"] = torch.zeros(1, 64, 64, 192)
    message = misfit(sam, state, tmp_path)
    assert f"10 missing: {', '.join(gone[:8])}, ... (2 more)\n" in message
    assert "1 unexpected: mask_decoder.hf_token.weight\n" in message
    assert (
        "1 of another shape: image_encoder.pos_embed: checkpoint (1, 64, 64, 192) vs model (1, 32, 32, 192)\n"
        in message
    )


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("image_encoder.blocks.0.attn.qkv.linear_a_q.weight", "LoRA weights (as SAMed's). Merge them"),
        ("image_encoder.blocks.0.attn.qkv.lora_A", "LoRA weights"),
        ("image_encoder.blocks.0.MLP_Adapter.D_fc1.weight", "adapters"),
    ],
)
def test_relatives_are_named(sam, weights, tmp_path, extra, words):
    message = misfit(sam, {**weights, extra: torch.zeros(1)}, tmp_path)
    assert "It looks like SAM with" in message and words in message


def test_saved_lora_alone_is_named(sam, tmp_path):
    assert "LoRA weights (as SAMed's)" in misfit(sam, {f"w_a_{i:03}": torch.zeros(1) for i in range(4)}, tmp_path)


def test_positions_of_another_image_size_are_said_in_words(sam, weights, tmp_path):
    message = misfit(sam, {**weights, "image_encoder.pos_embed": torch.zeros(1, 16, 16, 192)}, tmp_path)
    assert "trained on images of 256 x 256 px, the model takes 512 x 512. Leave --model away" in message


def test_other_numbers_for_constants(sam, weights, tmp_path):
    for odd in (torch.zeros(3, dtype=torch.complex64), torch.zeros(3, dtype=torch.int64), torch.zeros(10**6)):
        assert "pixel_std" in misfit(sam, {**weights, "pixel_std": odd}, tmp_path)


def test_an_unknown_width_is_a_shape_not_a_hint(sam, weights, tmp_path):
    message = misfit(sam, {**weights, EMBED: torch.zeros(384, 3, 16, 16)}, tmp_path)
    assert "looks like" not in message
    assert "checkpoint (384, 3, 16, 16) vs model (192, 3, 16, 16)" in message
    assert "checkpoint () vs model" in misfit(sam, {**weights, EMBED: torch.tensor(0.0)}, tmp_path)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["conv1.weight", "bn1.weight", "layer1.0.conv1.weight"], "3 tensors: conv1.weight, bn1.weight, layer1"),
        (["maskmem_tpos_enc", "image_encoder.trunk.pos_embed"], "looks like SAM 2"),
        (["vision_encoder.backbone.pos_embed"], "transformers"),
    ],
)
def test_foreign_weights_are_described(sam, tmp_path, keys, words):
    message = misfit(sam, {k: torch.zeros(1) for k in keys}, tmp_path)
    assert words in message
    assert "no Segment Anything checkpoint" in message


def test_weights_of_a_tiny_vit_are_told_how_they_are_read(sam, tmp_path):
    keys = ["image_encoder.patch_embed.seq.0.c.weight", "image_encoder.neck.0.weight"]
    message = misfit(sam, {k: torch.zeros(1) for k in keys}, tmp_path)
    assert "looks like MobileSAM or LiteMedSAM" in message and "Leave --model away" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named(sam, weights, tmp_path, value):
    name = "image_encoder.blocks.3.attn.qkv.bias"
    broken = weights[name].clone()
    broken[7] = value
    assert f"{name} contains NaN or infinity" in misfit(sam, {**weights, name: broken}, tmp_path)


def test_weights_that_overflow_float32_are_named(sam, weights, tmp_path):
    name = "image_encoder.neck.1.bias"
    huge = weights[name].double() + 1e300
    assert name in misfit(sam, {**weights, name: huge}, tmp_path)


def test_quantised_weights_are_refused(sam, weights, tmp_path):
    name = "image_encoder.neck.1.bias"
    message = misfit(sam, {**weights, name: weights[name].to(torch.int8)}, tmp_path)
    assert f"{name} is torch.int8" in message
