"""A forge in the middle of a day's work, for who looks at its pages: tests of accessibility and the pictures of the README."""

from __future__ import annotations

from conftest import Server, Work

BUILD = r"""printf '\033[1mchecking\033[0m 3 packages\n'
for part in parser lexer printer; do printf '  \033[32mok\033[0m %s \033[2m(0.4 s)\033[0m\n' $part; done
for percent in 10 40 70 100; do printf 'fetching %s%%\r' $percent; done; echo
printf 'docs: \033]8;;https://example.org/manual\033\\the manual\033]8;;\033\\\n'
"""
FAILURE = (
    BUILD
    + r"""printf '\033[31merror:\033[0m src/login.py:12: name \033[1mpasswrd\033[0m is not defined\n'
printf '\033[33mwarning:\033[0m 1 test failed, 41 passed\n'
exit 3
"""
)
LOGIN = "".join(f"def step_{number}(state):\n    return state + {number}\n\n\n" for number in range(1, 9))
LOCK = """{"nodes": {"app": {"locked": {"rev": "%s"}}, "root": {"inputs": {"app": "app"}}}, "root": "root"}""" % ("1" * 40)
MESSAGE = """Log in with a password

The form posts to /login, and a session begins. Nothing is kept in
the browser but the session's name."""


def tell(server: Server) -> dict[str, str]:
    """Let the day happen; the address of each kind of page."""
    app = server.repo("app")
    app.commit("Read the settings from a file", **{"src/settings.py": LOGIN, "README.md": "# app\n", "deploy": "echo deployed\n"})
    app.push("main")
    server.idle()
    for name in ("fix-typo", "faster-start"):
        app.branch(name, f"{name.replace('-', ' ').capitalize()}\n\nAuto-Merge: yes", run=BUILD, **{f"src/{name}.py": LOGIN})
        app.push(name)
        app.landed(name)
    server.idle()
    app.branch("topic/conflict", "Change the settings", **{"src/settings.py": LOGIN.replace("state", "other")})
    app.push("topic/conflict")
    server.idle()
    app.git("checkout", "-q", "-B", "main", "origin/main")
    app.git("pull", "-q", "origin", "main")
    app.commit("Name the settings", **{"src/settings.py": LOGIN.replace("state", "settings")})
    app.push("main")
    failed = _failed_branch(app)
    app.branch("docs/install", "Say how to install it", run=BUILD, **{"README.md": "# app\n\nRun it.\n"})
    app.push("docs/install")
    server.idle()
    configs = server.repo("configs")
    configs.commit("Deploy to the host", deploy="echo 'copying 12 paths'; echo 'error: the host is not there'; exit 1\n")
    configs.push("main")
    server.idle()
    deployed = server.get("/jobs?repo=app&kind=post-merge&status=passed&limit=1")["jobs"][0]
    cause = f"Forge-Cause: app {deployed['commit']} job {deployed['id']}"
    configs.branch("deploy-app", f"Bump app\n\nAuto-Merge: yes\n{cause}")
    configs.push("deploy-app")
    configs.landed("deploy-app")
    server.idle()
    host = server.repo("host")
    good = host.heads()["main"]
    host.branch("bump", "Move app\n\nAuto-Merge: yes", **{"flake.lock": LOCK})
    host.push("bump")
    host.landed("bump")
    server.idle()
    server.cli("rollback", "host", good, "--untested")
    server.idle()
    host.branch("again", "Move app again\n\nAuto-Merge: yes", **{"flake.lock": LOCK})
    host.push("again")
    server.idle()
    server.cli("create", "empty")
    app.branch("slow", "Work that goes on", run=f"{BUILD}while [ ! -e $HOME/done ]; do sleep 0.2; done\n")
    running = app.push_job("slow")
    server.running(running)
    return {
        "index": "/",
        "repo": "/r/app",
        "repo-empty": "/r/empty",
        "mr": "/r/app/mr/feature/login",
        "mr-split": "/r/app/mr/feature/login?view=split",
        "file": "/r/app/mr/feature/login?file=src/login.py",
        "mr-ready": "/r/app/mr/docs/install",
        "mr-conflict": "/r/app/mr/topic/conflict",
        "mr-merged": "/r/app/mr/fix-typo",
        "history": "/r/app/history",
        "deployments": "/r/app/deployments",
        "deployments-held": "/r/host/deployments",
        "deployment": f"/r/host/deployments/{server.get('/r/host/deployments')['deployments'][0]['id']}",
        "mr-held": "/r/host/mr/again",
        "search": "/search?q=error",
        "jobs": "/jobs",
        "job-failed": f"/jobs/{failed}",
        "job-running": f"/jobs/{running}",
        "login": "/login",
        "nothing": "/r/app/nothing",
    }


def _failed_branch(app: Work) -> int:
    """A branch with some commits of which the head fails; the id of its job."""
    app.branch("feature/login", "Begin with the form", **{"src/login.py": "def form():\n    return 1\n"})
    app.git("mv", "src/fix-typo.py", "src/typo.py")
    app.commit("Move the typo", **{"src/settings.py": LOGIN.replace("state", "settings").replace("+ 3", "+ 33")})
    app.commit(MESSAGE, run=FAILURE, **{"src/login.py": LOGIN.replace("+ 5", "+ passwrd")})
    return app.push_job("feature/login")
