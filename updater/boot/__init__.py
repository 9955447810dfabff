"""Boot back ends: how a trial is armed, committed or taken back, loader by loader."""
