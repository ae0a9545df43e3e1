"""The three ways in which memory can reach a device that needs it mapped, as contenders."""

from benchmarks.contenders import Contender, PythonWorker


def memory_contenders(python: str, loop: str) -> list[Contender]:
    ways = {
        "registered": "registered memory: no copy",
        "pool": "any memory, through the bounce pool",
        "map": "memory mapped for each request",
    }
    return [
        PythonWorker(f"memory-{way}", words, "aioblk_memory", python, loop, (way,))
        for way, words in ways.items()
    ]
