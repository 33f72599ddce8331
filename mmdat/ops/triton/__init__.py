"""Fused kernels in Triton, for NVIDIA GPUs; imported only where ``impl='triton'`` asks for them.

``*_kernels.py`` hold the kernels, ``deformable.py`` and ``local.py`` what prepares and starts them, ``settings.py`` the
sizes of their tiles, ``operators.py`` their registration, ``availability.py`` where they can run. docs/gpu.md says how
they work and what is known of them.
"""
