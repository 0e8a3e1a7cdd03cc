"""Domain XML (https://libvirt.org/formatdomain.html): what is the same everywhere, and a file for each hypervisor."""
