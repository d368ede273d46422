def write_source(program, folder, *, force=False):
    raise RuntimeError
