"""The lowering table, one row an aten operator."""
