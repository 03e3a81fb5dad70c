"""Running a compiled schedule: one process an accelerator, each works through its program on torch.distributed.

* :mod:`compiler.runtime.job`: what the processes are told, and what they report, as plain data; no IR, no torch.
* :mod:`compiler.runtime.prepare`: from a module with programs to a job.
* :mod:`compiler.runtime.launch`: starts the processes through torchrun (:mod:`compiler.runtime.start`), watches them on
  the :mod:`compiler.runtime.board`, says who is to blame (:mod:`compiler.runtime.faults`), and leaves none behind.
* :mod:`compiler.runtime.worker`: one of the processes; :mod:`compiler.runtime.engine` runs the program there, with
  :mod:`compiler.runtime.messages` on their way and what :mod:`compiler.runtime.emulated` or
  :mod:`compiler.runtime.real` do for each instruction (:mod:`compiler.runtime.backend`).
* :mod:`compiler.runtime.reference`: the unpipelined model, which real runs are compared with;
  :mod:`compiler.runtime.fits`: whether a real run fits on this machine.
* :mod:`compiler.runtime.recorded`: what the processes reported; :mod:`compiler.runtime.measured`: figures of it, and
  those of the schedule; :mod:`compiler.runtime.replayed`: those that the order of the programs makes of measured times.
* :mod:`compiler.runtime.report`: the table of ``taktc run``; :mod:`compiler.runtime.trace`: schedule and run for
  Perfetto, with what accelerators waited for (:mod:`compiler.runtime.waits`).
* :mod:`compiler.runtime.elsewhere`: runs that torchrun starts on several machines.

Apart from these, :mod:`compiler.runtime.torch_pipelining` loads what ``--emit torch-csv`` writes into torch's runtime.
"""
