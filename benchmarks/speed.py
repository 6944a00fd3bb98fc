"""What an explanation costs beside the plain input gradient, and beside Captum and Zennit where installed.

    python benchmarks/speed.py --models vgg16 resnet50 --batch 1 4

prints a Markdown table. All methods are timed in one process, in turns, so that a slow minute of the machine
meets them all; the figures are medians. On the CPU that is CPU time, on one thread unless `--threads` says
otherwise; on CUDA, elapsed time up to the device's last kernel. Memory is the peak above the loaded model,
each method in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from _methods import METHODS, Method, Unavailable, prepare
from _torchvision import import_torchvision

TARGET = 0


def main(arguments: list[str] | None = None) -> None:
    """Measure what the command line asks for and print it."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    if options.only_memory:
        print(json.dumps(peak_memory(options.models[0], options.batch[0], options.methods[0], options)))
        return
    print(heading(options))
    print()
    print("| network | batch | method | ms | x gradient | memory MB | x gradient | sum R / f |")
    print("|---|---:|---|---:|---:|---:|---:|---:|")
    for name in options.models:
        model = build(name, options)
        for batch in options.batch:
            for line in table(name, model, batch, options):
                print(line, flush=True)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["vgg16", "resnet50"], help="names in torchvision.models")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 4], help="samples at a time")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="METHOD")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds, after one that is not counted")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch on the CPU")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64", "bfloat16", "float16"])
    parser.add_argument("--no-memory", action="store_true", help="skip the processes that measure memory")
    parser.add_argument("--only-memory", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.methods = [*dict.fromkeys(["gradient", *options.methods])] if not options.only_memory else options.methods
    return options


def heading(options: argparse.Namespace) -> str:
    """What was measured, in one line."""
    where = torch.cuda.get_device_name(options.device) if options.device != "cpu" else "CPU"
    clock = "CPU time" if options.device == "cpu" else "elapsed time"
    return (
        f"torch {torch.__version__}, {where}, {options.threads} thread(s), {options.dtype}, "
        f"{options.size} x {options.size}, {clock}, median of {options.repeats}"
    )


def build(name: str, options: argparse.Namespace) -> nn.Module:
    """A network with random weights, frozen, in eval mode."""
    torchvision = import_torchvision()
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # googlenet and inception, of their initialisation
        model: nn.Module = torchvision.models.get_model(name, weights=None)
    # The initialisation of some networks fades with depth, or zeroes the head: stabilisers would absorb all.
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=(2 / parameter[0].numel()) ** 0.5)
    return model.to(options.device, getattr(torch, options.dtype)).eval().requires_grad_(False)


def images(batch: int, options: argparse.Namespace) -> Tensor:
    """Random pixels of both signs."""
    torch.manual_seed(1)
    return torch.randn(batch, 3, options.size, options.size).to(options.device, getattr(torch, options.dtype))


def table(name: str, model: nn.Module, batch: int, options: argparse.Namespace) -> list[str]:
    """The rows of one network and batch size."""
    x = images(batch, options)
    with torch.no_grad():
        score = model(x)[:, TARGET].double().sum()
    times, sums, refused = rounds(model, x, options)
    base = statistics.median(times["gradient"])
    rows, memory_base = [], None
    for label in options.methods:
        start = f"| {name} | {batch} | {label} |"
        if label in refused:
            rows.append(f"{start} {refused[label]} | | | | |")
            continue
        median = statistics.median(times[label])
        memory = None if options.no_memory else memory_of(name, batch, label, options)
        memory_base = memory if label == "gradient" else memory_base
        shown = "" if memory is None else f"{memory:.0f}"
        ratio = "" if memory is None or not memory_base else f"{memory / memory_base:.2f}"
        share = "" if sums[label] is None else f"{sums[label] / score:.3g}"
        rows.append(f"{start} {1e3 * median:.0f} | {median / base:.2f} | {shown} | {ratio} | {share} |")
    return rows


def rounds(
    model: nn.Module, x: Tensor, options: argparse.Namespace
) -> tuple[dict[str, list[float]], dict[str, Tensor | None], dict[str, str]]:
    """Times of every method, taken in turns; the sum of its relevance; and why a method did not run."""
    times: dict[str, list[float]] = {label: [] for label in options.methods}
    sums: dict[str, Tensor | None] = {}
    refused: dict[str, str] = {}
    for turn in range(options.repeats + 1):
        for label in options.methods:
            if label in refused:
                continue
            method = METHODS[label]
            try:
                # Prepared anew at each turn: Zennit's hooks must not lie on the model while others run.
                with prepare(method, model) as attribute:
                    began = clock(options.device)
                    relevance = attribute(x, TARGET)
                    elapsed = clock(options.device) - began
            except Unavailable as error:
                refused[label] = str(error)
            except Exception as error:  # noqa: BLE001 - a peer that fails is a result
                refused[label] = failure(error)
            else:
                if turn == 0:
                    sums[label] = relevance.double().sum() if method.conserves else None
                else:
                    times[label].append(elapsed)
                del relevance
    return times, sums, refused


def failure(error: Exception) -> str:
    """An exception in half a line of a table."""
    message = " ".join(str(error).split()).replace("|", "/")
    return f"{type(error).__name__}: {message[:60]}"


def clock(device: str) -> float:
    """Seconds: of this process on a CPU, on the wall once a CUDA device is idle."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def memory_of(name: str, batch: int, label: str, options: argparse.Namespace) -> float | None:
    """Peak memory of one explanation in MB above the loaded model, in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--only-memory", "--models", name]
    command += ["--batch", str(batch), "--methods", label, "--size", str(options.size)]
    command += ["--threads", str(options.threads), "--device", options.device, "--dtype", options.dtype]
    # glibc then hands freed blocks back at once: else the peak depends on what the warm-up left behind.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        return None
    return float(json.loads(done.stdout.splitlines()[-1]))


def peak_memory(name: str, batch: int, label: str, options: argparse.Namespace) -> float:
    """Explain once and return the growth of this process's, or the device's, peak in MB."""
    model = build(name, options)
    x = images(batch, options)
    method: Method = METHODS[label]
    with prepare(method, model) as attribute:
        # Libraries load and threads start at the first call, of a small image.
        attribute(x[:1, :, :64, :64], TARGET)
        if options.device != "cpu":
            torch.cuda.reset_peak_memory_stats(options.device)
            before = torch.cuda.memory_allocated(options.device)
            attribute(x, TARGET)
            return (torch.cuda.max_memory_allocated(options.device) - before) / 2**20
        start = restart_peak()
        attribute(x, TARGET)
        return max(peak() - start, 0.0)


def restart_peak() -> float:
    """Forget this process's peak so far, where the system can (Linux), and return its present size in MB."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return peak()
    return peak()


def peak() -> float:
    """The largest resident size of this process so far, in MB."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
