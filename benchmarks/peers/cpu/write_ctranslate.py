"""A Hugging Face folder -> a CTranslate2 folder, by CTranslate2's own converter. Knows nothing of ours.

    python -m peers.cpu.write_ctranslate PACKAGES FOLDER TARGET int8|float32

The converter needs torch and transformers, which an engine that is measured must not have in memory: it runs in the
environment of transformers, and CTranslate2 is found among the other one's PACKAGES.
"""

import sys


def main(packages: str, folder: str, target: str, quantization: str) -> int:
    sys.path.append(packages)
    from ctranslate2.converters import TransformersConverter  # which is found only now

    TransformersConverter(folder).convert(target, quantization=quantization)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
