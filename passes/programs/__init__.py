"""From a periodic schedule to one instruction list per accelerator: pure algorithms on plain data, without IR."""
