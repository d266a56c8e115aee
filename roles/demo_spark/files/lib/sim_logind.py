"""`loginctl` and `busctl` of a Spark whose user lingers, so that what is started over SSH lives on."""


def main(host_folder, program, arguments):
    """Answer what a look at a Spark asks; faults/no-linger makes it a Spark whose user does not linger."""
    from sim_host import Host

    lingers = Host(host_folder).fault("no-linger") is None
    if program == "loginctl" and "show-user" in arguments:
        print("yes" if lingers else "no")
        return 0
    if program == "busctl" and "RemoveIPC" in arguments:
        print("b true")
        return 0
    return 1
