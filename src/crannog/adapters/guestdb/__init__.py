"""Guest DBs that a hypervisor keeps."""
