#!/usr/bin/env bash
# A client in a shell: reads and writes lines. Its input and output are the daemon's socket.
printf '%s\n' '{"id":1,"event":"router:serve","data":{"event":"shell:count"}}'
while IFS= read -r line; do
  if [[ $line =~ ^\{\"id\":([0-9]+),\"event\":\"shell:count\",\"data\":\{\"word\":\"([a-z]*)\" ]]; then
    printf '{"id":%d,"result":{"letters":%d}}\n' "${BASH_REMATCH[1]}" "${#BASH_REMATCH[2]}"
  fi
done
