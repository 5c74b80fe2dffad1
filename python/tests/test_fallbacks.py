"""What is done where something is not there, as Python sees it; tests/tests/llm.rs has the same of a GPU that is too small, too new, or without NVRTC."""

import json
import shutil
import subprocess

import pytest
from conftest import ROOT

from fuserun import LLM

WITHOUT = {"CUDA_VISIBLE_DEVICES": ""}


def test_without_a_gpu_a_line_says_that_it_is_the_cpu(run):
    done = run("from fuserun import LLM; print(LLM().device)", env=WITHOUT)
    assert (done.stdout, done.stderr) == ("cpu\n", "no NVIDIA GPU found: running on the CPU\n")


def test_the_line_can_be_taken_by_a_logger(run):
    program = "import logging; logging.getLogger('fuserun').setLevel('ERROR'); from fuserun import LLM; print(LLM().device)"
    done = run(program, env=WITHOUT)
    assert (done.stdout, done.stderr) == ("cpu\n", "")


@pytest.mark.parametrize("device", ["gpu", "cuda:0"])
def test_a_gpu_that_is_named_and_not_there_is_a_runtime_error(run, device):
    program = f"from fuserun import LLM\ntry: LLM(device='{device}')\nexcept RuntimeError as error: print(error)"
    done = run(program, env=WITHOUT)
    assert done.stderr == "" and len(done.stdout.splitlines()) == 1 and len(done.stdout) > 20, done


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """A driver library without a GPU behind it."""
    folder = tmp_path_factory.mktemp("driver")
    compiler = next((path for path in map(shutil.which, ("cc", "gcc", "clang")) if path), None)
    assert compiler, "a C compiler is needed"
    source = ROOT / "runtime/tests/fake_driver/libcuda.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-pthread", "-o", folder / "libcuda.so.1", source], check=True)
    (folder / "libcuda.so").symlink_to("libcuda.so.1")
    return folder


def test_a_gpu_that_the_model_does_not_fit_on_is_left_in_a_line_per_choice(run, driver):
    env = {"LD_LIBRARY_PATH": str(driver), "FAKE_CUDA_FREE": "1000", "FUSE_NVRTC": nvrtc()}
    done = run("from fuserun import LLM; llm = LLM(); print(llm.device, llm.max_num_seqs)", env=env)
    assert done.stdout == "cpu 4\n", done.stderr
    lines = done.stderr.splitlines()
    assert all(line.startswith("llama does not fit: ") for line in lines), lines
    ends = [": trying 4 slots", ": trying 2 slots", ": trying 1 slot", ": running on the CPU"]
    assert [line.endswith(end) for line, end in zip(lines, ends, strict=True)] == [True] * 4
    program = "from fuserun import LLM\ntry: LLM(device='gpu', max_num_seqs=2)\nexcept RuntimeError as error: print(error)"
    done = run(program, env=env)
    assert done.stdout.startswith("llama does not fit: ") and done.stdout.count("\n") == 1 and "2 sequences of 1024 positions" in done.stdout


def nvrtc():
    done = subprocess.run([ROOT / "tests/nvrtc"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return str(ROOT / ".cache/nvrtc/nvidia/cu13/lib")


def test_a_gpu_without_nvrtc_is_left_in_a_line(run, driver):
    done = run("from fuserun import LLM; print(LLM().device)", env={"LD_LIBRARY_PATH": str(driver), "FUSE_NVRTC": "/nowhere"})
    [line] = done.stderr.splitlines()
    assert done.stdout == "cpu\n" and line.startswith("a GPU is here, but NVRTC") and line.endswith(": running on the CPU")


FAMILIES = [
    ("MambaForCausalLM", "a selective state space (Mamba)"),
    ("BertForMaskedLM", "is an encoder, which writes no text"),
    ("NobodyForCausalLM", "no description serves NobodyForCausalLM"),
]


@pytest.mark.parametrize("architecture, said", FAMILIES, ids=[name for name, _ in FAMILIES])
def test_a_family_that_does_not_run_is_named_with_what_is_missing(tmp_path, architecture, said):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    shutil.copy(ROOT / "models/demo/model.safetensors", tmp_path)
    with pytest.raises(ValueError) as error:
        LLM(tmp_path, device="cpu")
    assert said in str(error.value) and "\n" not in str(error.value)
