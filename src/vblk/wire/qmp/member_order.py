"""The order in which QEMU writes the members of an object.

Owns: the order, so that texts can be compared letter for letter. It was observed:
qemu-storage-daemon 7.2 was sent ids that are objects with these members, and wrote
them back. Members that share a place (with `/` between them) come in the reverse of
the order in which QEMU's schema has them; unknown ones come last, as given.
"""

from typing import Final

_ORDER: Final = """
refcount-cache-size abstract encoding-rate/share seconds ivgen-alg/main-header avg_flush_latency_ns/iotype
no-flush/toolsversion cpu-throttle-tailslow/iops_rd/remote/x-iops-total bitmap/max-connections
total/unmap_operations compat/compress avg_rd_queue_depth/detect_zeroes/icount num-queues
flags/xbzrle-cache-size auto-finalize/indev/prealloc-context cpu-throttle-initial
bps-read-max-length/new_state growable/timestamp/vm-clock-nsec actions numeric default-value io-status
announce-max/iops-read-max-length min_rd_latency_ns/x-bps-read-max unmap_merged bins/refcount-block
postcopy-requests passwordid reserve name opt-write-zero boundaries-write/expected-downtime/test description
location max_flush_latency_ns dirty-sync-count/set-state active device decompress-threads force/locking
postcopy-blocktime source discard-bytes-ok/str/x-iops-read-max-length password-secret direct
multifd-bytes/pool/port parent/refcount-table session-file x-origin bps-read-max bps-total/poll-shrink
top-node bytes cache-size flush_total_time_ns/implements cpu-throttle-percentage/query-nodes
discard-nb-ok/reduced-phys-bits hash-alg/url backing-image/log-super-update-interval/sanity-check/serial
allow-other/wr_highest_offset wr_total_time_ns iters/x-bps-total-max-length read-zeroes msg
compression-rate/compression-type/nospace iops-total-max-length compressed/current-progress/thread-id
block-bitmap-mapping/handle active-l1/active-l2/vfio element-type cookie-secret qom-type QMP/x-perf
inject-error/recording immediately iops-total cbitpos/compression/height cid/replaces
failed_rd_operations/failed_wr_operations/lazy-refcounts/log-size/xbzrle-cache log date-sec on-target-error
bitmaps/once loaded/locked/read-pattern shared-perm cipher-alg/iops-write-max prealloc
human-readable-text/pass-discard-snapshot/refcount-bits pages-per-second auto-dismiss
buf-size/downtime-bytes/perm/persistent bus max_queue_size image-node-name/mptcp state/stats tag backend
vnet_hdr_support bps-write fat-type cpu-affinity aio-max-batch/chardev/keyid aligned-accesses
completion-mode/wr_merged poll-grow detect-zeroes/log-sector-size parent-cid uuid
netdev/proxy-username/repeat bps-total-max/devices/wr_bytes/x-iops-size page-size
failed_unmap_operations/timed_stats keyslot compress-threads iops_max_length/iter-time removable busy fd
allocation-depth/if/iv edges logappend filter-node-name/notify_dev len/lun adapter-type/y-origin
service/writeback ipv4/ipv6 avg_wr_latency_ns/boundaries-flush/grab-toggle
failed_flush_operations/max-write-zero/x-iops-total-max-length bps_max_length/pass-discard-other
extent-size-hint/offset image data-file/local version iops_wr mountpoint ivgen-hash-alg/readahead limits
cache-miss-rate/group remaining/socket/x-check-cache-dropped x-bps-read-max-length postcopy-bytes
backing/x-use-canonical-path-for-ramblock-id interval_length ro
compress-level/fds/singlestep/status/writable account_invalid/force-size/read-only-mode/throttle-group
boundaries-read/hugetlbsize/max-transfer backing-filename-format/children/cols/conf
compressed-size/fqdn/portal inactive-l2/x-bps-read class/template dir/node-name max_wr_latency_ns
addr/bps-write-max/capabilities header-digest readonly cache-clean-interval instances guest/paused
initiator-name micro/minor/x-bps-write-max-length snapshot bps_wr_max_length host date-nsec/timeout qemu
host-key-check x-iops-read iops-size/iops_size/take-child-perms snapshot-table backing_file_depth driver
multifd-channels clipboard/granularity count/tn3270 fatal running host-nodes pty/tcp-syn-count disk
reference create-type/rd_total_time_ns enable/mode avg_rd_latency_ns/path x-iops-read-max block-size
driver-specific/outdev/secret speed invalid_unmap_operations/multifd-zstd-level/x-bps-total
snapshots/variants blkverify/key-offset/logfile completion-errors/flush_operations/prealloc-threads
queue/ret-type l2-cache-entry-size log-append/width announce-initial/base-node total-progress iothread
rows/typename opened iops-read/pass-discard-request unmap/wr_operations discard-nb-failed/x-bps-total-max
iops-write-max-length/kernel-hashes mbps dh-cert-file endpoint max_rd_latency_ns/mouse pages
base/x-iops-write-max inactive-l1/max-chunk/unmap_bytes/websocket vmstate snapshot-file iops-write
frontend-open/iops_rd_max_length execute min_flush_latency_ns/proxy-password-secret
bps_wr_max/compare_timeout bps_rd_max_length/default overlap-check capability/config/insert/open
bitmap-directory/new-secret/on-source-error/sectors-count drv virtual-size block-incremental members
compress-wait-thread/rd_merged filename/readahead-size append/setup-time
cluster-size/inserted/rewrite-corrupted/use-copy-range downtime-limit/property
old-secret/preallocation/size/sync/username iops_rd_max/rd_bytes
error-desc/namespace/snapshot-node-name/transferred grab_all export/package/transform primary_in
bps_max/thread-pool-max/thread-pool-min auto-read-only/backing-fmt l2-cache-size/sha256 max-workers
reconnect-delay/wr_latency_histogram x-iops-write iops/tls-authz
bps-total-max-length/format/unmap_total_time_ns qom-path child/downtime/encrypt queues/sector/server
read-only bps_wr/encryption-format keep-alive hugetlb slot actual-size/floppy block-state-zero/merge
bitmap-mode/data-file-raw/format-specific/poll-max-ns dirty-sync-missed-zero-copy
iops-read-max/table-size/total-time invalid_flush_operations cbw-timeout/node/prealloc-align
busy-rate/full-backing-filename/on-cbw-error evdev/event account_failed opt-discard/telnet
allow-oob/multifd-compression/unshare-child-perms/x-dirty-bitmap label/microseconds announce-rounds/volume
idle_time_ns/ready/rules bps_rd_max/cipher-mode/desc/dump precopy-bytes stripes pmem hwversion/verify-peer
slots/subformat bps-read/shutting-down cookie properties qdev announce-step/vote-threshold
identity/sev-device nocow/nodes/tray-open/tray_open payload-offset/vm-clock-sec case/overflow/tls-creds
backing-file/backing_file/write_threshold dirty-bitmaps reason/return on-error/x-bps-write
aio/bps-write-max-length disabled postcopy-vcpu-blocktime encrypted/job-id bps/debug/devid/writethrough to
multifd-zlib-level/transport operation queue-size/value bps_rd/hash in/x-bps-write-max fdname
max-cpu-throttle/sector-num type extents expired_scan_cycle/json-type/nodelay meta-type/policy
open-timeout/ram/raw max-postcopy-bandwidth latency-ns cache discard/duplicate action/iops-total-max
fixed-iothread/overlay/priority/tls-hostname/zeroed-grain drop-cache prealloc-size/seal arguments
reconnect/socket-address id-list iops_max/rd_operations sslverify/write-threshold top avg_wr_queue_depth
master-key-iters/unaligned-accesses rw cache-miss/secondary_in bottom/throttle-trigger-threshold/top-id
force-share tight dirty-pages-rate/file/max-bandwidth/slot-type signal arg-type/page-cache-size user
min_wr_latency_ns/options node-affinity boundaries/position iops_wr_max_length logical-block-size
backing-filename/skipped corrupt/discard-data x-iops-total-max fdset-id/major/match inconsistent
amount-exceeded refresh copy-mode/x-checkpoint-delay id/mem-path invalid_rd_operations/invalid_wr_operations
interval errno/error opaque/wait target/values iops_wr_max/out vm-state-size features/flat/pr-manager
cpu-throttle-increment/info auth-client-required/key-secret normal-bytes blocked-reasons
dirty-flag/max-discard x-iops-write-max-length extended-l2/rd_latency_histogram flush_latency_histogram
data/normal canbus/maxlen alias/align
"""

RANK: Final = {name: rank for rank, place in enumerate(_ORDER.split()) for name in place.split("/")}
"""The place of each member."""

UNKNOWN: Final = len(RANK)
"""The place of every other member."""
