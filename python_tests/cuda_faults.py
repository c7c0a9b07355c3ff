"""The test of a test: whether it finds a barrier, a fence or a wait that is missing in a kernel."""

from collections.abc import Callable

import ptxsim
from cuda_simulator import Simulator, compiled


def survivors(
    simulator: Simulator, file: str, kernel: str, check: Callable[[], None], schedules: tuple[int, ...] = (0, 1, 2)
) -> list[str]:
    """The faults of a kernel that ``check`` lets pass under all schedules: each is redundant, or a hole in the test.

    Args:
        simulator: of the test.
        file: of csrc/cuda, without its ending.
        kernel: a kernel of that file.
        check: runs the kernel, and raises where a result is wrong.
        schedules: seeds; 0 runs each warp in turn.
    """

    kernels = compiled(file, simulator.arch)
    module = kernels.module(kernel)

    def test(module: ptxsim.Module) -> None:
        faulty = kernels.replaced(kernel, module)
        simulator.module = lambda name, arch: faulty if name == file else compiled(name, arch)
        for seed in schedules:
            simulator.options.update(schedule=seed, quantum=(20, 4, 100)[seed % 3], resident=(3, 2, 1)[seed % 3])
            check()

    def test_fault(faulty: ptxsim.Module) -> None:
        faulty.source = lambda line: ""  # nobody reads what it reports, and to look for a line takes long
        test(faulty)

    test(module)
    return ptxsim.survivors(module, kernel, test_fault)
