"""python -m distill.teacher_server: the same as `edl teacher serve`."""

from distill.teacher.command import serve

if __name__ == "__main__":
    serve(prog_name="python -m distill.teacher_server")
