"""The compiled library: plain C without Python in it, so one file serves every Python. All else: pyproject.toml."""

from glob import glob

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext


class BuildLibrary(build_ext):
    """Names the library after itself alone: it holds nothing of any Python's ABI."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"


class PlatformWheel(bdist_wheel):
    """A wheel for one platform and every Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": PlatformWheel},
    ext_modules=[
        Extension(
            "bloomery.ops.native.libbloomery",
            sources=sorted(glob("src/bloomery/ops/native/*.c")),
            depends=sorted(glob("src/bloomery/ops/native/*.h")),
            # Never -march=native: wider instructions are chosen by each function when it runs.
            # Products are added without rounding in between where the processor can: -ffp-contract.
            extra_compile_args=[
                "-std=gnu11",
                "-O3",
                "-ffp-contract=fast",
                "-Wall",
                "-Wextra",
                "-Wno-psabi",
                "-pthread",
            ],
            extra_link_args=["-pthread", "-lm"],
            optional=True,  # without a compiler the pure Python paths serve, and `bloomery info` says so
        )
    ],
)
