function __crannog_complete
    set -l line (commandline -opc) (commandline -ct)
    set line[1] (basename $line[1])
    crannog complete -- $line 2>/dev/null
end
for program in crannog qubes-prefs qvm-block qvm-check qvm-clone qvm-console qvm-copy-to-vm qvm-create qvm-device qvm-features qvm-firewall qvm-kill qvm-ls qvm-move-to-vm qvm-notes qvm-pause qvm-pci qvm-pool qvm-prefs qvm-remove qvm-run qvm-service qvm-shutdown qvm-start qvm-tags qvm-unpause qvm-usb qvm-volume
    complete -c $program -a '(__crannog_complete)'
end
