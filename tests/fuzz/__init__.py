"""Fuzzing: functions that take any bytes, for each place where vconfs reads what others wrote."""
