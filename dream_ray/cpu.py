"""Computing on a CPU: how processes wait for each other and keep their memory, and in what precision.

Contract: `WAITING` and `KEEPING` are environment variables, to be set before a process imports torch; they change how long a
computation takes and nothing else. `python benchmarks/cpu.py` measures all of it on the machine at hand.
"""

from pathlib import Path

WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "3000"}
"""OpenMP threads that wait spin for some microseconds, then sleep. Where they sleep at once, a training step of the demo took
1.5 times as long on two quiet cores, for it has thousands of short parallel regions. Where they spin on, the default, it
took up to three times as long beside one busy process, and Ray always has some: each thread keeps a core from the
one it waits for. The count is GNU OpenMP's, which torch and vLLM ship for Linux; others go by the policy."""

KEEPING = {"MALLOC_MMAP_THRESHOLD_": str(32 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(256 * 2**20)}
"""The C library gives blocks of up to 32 MiB, its largest setting, from memory that the process has, and returns what is free
beyond 256 MiB. By default each tensor of a step is mapped, cleared by the kernel page for page, and given back: a tenth of
the step's time."""

CPU_INFO = Path("/proc/cpuinfo")


def computes_bfloat16() -> bool:
    """Whether this machine's CPU multiplies bfloat16 numbers itself, which doubles the speed of a product of matrices.

    Others take two to five times as long as in float32 (measured with torch 2.13's oneDNN held to AVX-512 without bfloat16
    and to AVX2). Where Linux does not list an x86 CPU's abilities nothing was measured: False.
    """
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else []
    abilities = next((line.split() for line in lines if line.startswith("flags")), [])
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(abilities)
