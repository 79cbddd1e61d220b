"""From operations to a program: a table of calls over one arena, and that as C."""
