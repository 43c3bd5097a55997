"""The benchmarks by name.

Contract: `BENCHMARKS` holds one `Benchmark` for each name that the config knows; the modules beside this one define them.
"""

from collections.abc import Mapping

from dream_ray.evaluate.benchmarks.choices import MMSTAR, SIUO_MCQA
from dream_ray.evaluate.benchmarks.protocol import Benchmark
from dream_ray.evaluate.benchmarks.refusal import FIGSTEP, FIGSTEP_BENIGN, MOSSBENCH, VLGUARD, XSTEST
from dream_ray.evaluate.benchmarks.situations import MM_SAFETYBENCH, MSSBENCH, SIUO

BENCHMARKS: Mapping[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        FIGSTEP,
        FIGSTEP_BENIGN,
        VLGUARD,
        XSTEST,
        MOSSBENCH,
        SIUO,
        SIUO_MCQA,
        MM_SAFETYBENCH,
        MSSBENCH,
        MMSTAR,
    )
}

__all__ = ["BENCHMARKS", "Benchmark"]
