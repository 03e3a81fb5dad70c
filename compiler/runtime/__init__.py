"""Running a compiled schedule: one process an accelerator, each works through its program on torch.distributed.

* :mod:`compiler.runtime.job`: what the processes are told, and what they report, as plain data; no IR, no torch.
* :mod:`compiler.runtime.prepare`: from a module with programs to a job.
* :mod:`compiler.runtime.launch`: starts the processes through torchrun, watches them, and leaves none behind.
* :mod:`compiler.runtime.worker`: one of the processes; :mod:`compiler.runtime.engine` runs the program there, with
  what :mod:`compiler.runtime.emulated` or :mod:`compiler.runtime.real` do for each instruction.
* :mod:`compiler.runtime.reference`: the unpipelined model, which real runs are compared with;
  :mod:`compiler.runtime.fits`: whether a real run fits on this machine.
"""
