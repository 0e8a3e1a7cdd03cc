"""Any hypervisor that libvirt drives. libvirt's handles never leave this folder."""
