"""What differs between the versions that mmdat works with: all of it is here."""

import torch


def is_compiling() -> bool:
    """Whether torch.compile or torch.export is tracing."""
    # torch 2.1 does not have the public function yet; importing torch._dynamo takes seconds.
    return torch.compiler.is_compiling() if hasattr(torch.compiler, 'is_compiling') else torch._dynamo.is_compiling()
