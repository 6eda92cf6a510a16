package postgres

import (
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
)

// Setting is one line of postgresql.conf, its value unquoted.
type Setting struct {
	Name  string
	Value string
}

// SizeSpec is a compute's size in compute units: 1 CU = 1 vCPU + 4 GiB.
type SizeSpec struct {
	MinCU float64
	MaxCU float64
}

const (
	mib = int64(1) << 20
	gib = int64(1) << 30

	// smallCU is the size up to which a compute gets the least of what PostgreSQL touches whether it is used or not.
	smallCU = 0.25
)

// UnitMemory is the memory of one compute unit, in bytes.
const UnitMemory = 4 * gib

// units is the size that settings which cannot change while the server runs are made for.
func (s SizeSpec) units() float64 {
	lo, hi := s.MinCU, s.MaxCU
	if lo <= 0 {
		lo = 0.25
	}
	return min(max(hi, lo), 8*lo)
}

// SameSettings tells whether a server of one size serves as the other until its next start: clients get as many connections
// and workers. Its shared buffers, which follow the lower limit, may wait.
func SameSettings(a, b SizeSpec) bool {
	return a.connections() == b.connections() && a.workers() == b.workers()
}

func (s SizeSpec) connections() int { return max(100, min(4000, int(s.units()*419.66))) }

func (s SizeSpec) workers() int { return 12 + int(math.Floor(2*max(s.MaxCU, s.MinCU))) }

// FixedMemory is what a server of a size holds in any case, in bytes: its shared buffers, and room to work.
func FixedMemory(s SizeSpec, machineMemory int64) int64 {
	for _, x := range Config(ConfigOptions{Size: s, MachineMemory: machineMemory}) {
		if x.Name == "shared_buffers" {
			n, _ := strconv.ParseInt(strings.TrimSuffix(x.Value, "kB"), 10, 64) // as kb wrote it
			return n*1024 + 256*mib
		}
	}
	return 256 * mib
}

// ConfigOptions is what a compute's settings are computed from.
type ConfigOptions struct {
	Build              Build
	Size               SizeSpec
	MachineMemory      int64             // bytes; 0 means unknown: no cap
	LogicalReplication bool              // wal_level logical
	Preload            []string          // libraries to preload, in this order; see PreloadList
	Database           string            // where libraries that work in one database do; "" means DefaultDatabase
	AuditLevel         string            // a project's settings.audit_log_level; needs AuditLibrary in Preload
	PGSettings         map[string]string // the user's own; see CheckSettings
	Standby            *Standby          // nil for a primary
}

// Config computes the whole postgresql.conf of a compute, in a stable order. User settings replace computed ones except those
// that CheckSettings refuses, which are ignored here.
func Config(o ConfigOptions) []Setting {
	maxConns := o.Size.connections()
	memory := o.memory()
	walLevel := "replica"
	if o.LogicalReplication {
		walLevel = "logical"
	}
	// What the server holds in any case has to fit into the smallest size, or the compute could never shrink back to it.
	least := max(o.Size.MinCU, smallCU)
	shared := max(16*mib, o.capped(least)/4)
	if least <= smallCU {
		shared = max(16*mib, o.capped(least)/8)
	}

	s := []Setting{
		// From the compute's size.
		{"max_connections", strconv.Itoa(maxConns)},
		{"max_locks_per_transaction", strconv.Itoa(locksPerTransaction(maxConns))},
		{"max_pred_locks_per_transaction", strconv.Itoa(locksPerTransaction(maxConns))},
		{"max_worker_processes", strconv.Itoa(o.Size.workers())},
		{"shared_buffers", kb(shared)},
		// PostgreSQL clears all of it at every start; its own choice of 1/32 would be most of a small compute's memory.
		{"wal_buffers", kb(min(max(shared/128, mib), 16*mib))},
		{"effective_cache_size", kb(max(64*mib, memory*3/4))},
		{"maintenance_work_mem", kb(max(64*mib, min(gib, memory/32)))},

		// As clients of the API know it.
		{"wal_level", walLevel},
		{"max_wal_senders", "20"}, // 10 for clients, the rest for replicas
		{"max_replication_slots", "20"},
		// A forgotten slot keeps WAL for its consumer: this much, then it is lost (wal_status of pg_replication_slots).
		{"max_slot_wal_keep_size", "4GB"},
		{"superuser_reserved_connections", "7"},
		{"idle_in_transaction_session_timeout", "5min"},
		{"client_connection_check_interval", "60s"},
		{"timezone", "GMT"},
		{"log_timezone", "GMT"},
		{"lc_messages", "C"},
		{"default_text_search_config", "pg_catalog.english"},
		{"password_encryption", "scram-sha-256"},

		// Never lose an acknowledged commit; completed WAL segments never change, so they can be shared by hard link.
		{"fsync", "on"},
		{"full_page_writes", "on"},
		{"wal_recycle", "off"},

		// Bound what a branch has to replay.
		{"max_wal_size", "128MB"},
		{"min_wal_size", "32MB"},

		// Start fast.
		{"recovery_init_sync_method", "syncfs"},
		{"huge_pages", "off"},

		// Only the proxy talks to the server.
		{"listen_addresses", ""},
		{"port", strconv.Itoa(SocketPort)},
		{"unix_socket_permissions", "0700"},
		{"ssl", "off"},

		{"log_destination", "stderr"},
		{"logging_collector", "off"},
		{"log_line_prefix", "%m [%p] %q%u@%d "},
		{"log_checkpoints", "off"},
	}
	if o.Build.Major >= 15 {
		// Replay never needs to read ahead: every page that it touches comes whole with the first change after the redo point,
		// often just before a second change that a prefetcher would read the page for.
		s = append(s, Setting{"recovery_prefetch", "off"})
	}
	if least < 1 {
		s = append(s, Setting{"jit", "off"}) // LLVM alone takes more than such a compute should
	}
	if len(o.Preload) > 0 {
		s = append(s, Setting{"shared_preload_libraries", strings.Join(o.Preload, ",")})
		s = append(s, librarySettings(o.Preload, o.Database)...)
		if least <= smallCU && slices.Contains(o.Preload, "pg_stat_statements") {
			s = append(s, Setting{"pg_stat_statements.max", "1000"})
		}
	}
	s = mergeUser(s, o.PGSettings)
	if slices.Contains(o.Preload, AuditLibrary) {
		s = fixed(s, auditSettings(o.AuditLevel))
	}
	if o.Standby != nil {
		s = append(o.Standby.AtLeast.apply(s), o.Standby.settings()...)
	}
	return s
}

// locksPerTransaction keeps the lock tables of a compute for many connections small: all transactions share them, PostgreSQL
// clears much of them at every start, and a server of 100 connections has 6400 entries.
func locksPerTransaction(maxConns int) int { return min(64, max(16, 6400/maxConns)) }

// memory is what settings that cannot change while the server runs may plan with, in bytes.
func (o ConfigOptions) memory() int64 { return o.capped(o.Size.units()) }

// capped is the memory of a size as far as the machine has it, in bytes.
func (o ConfigOptions) capped(cu float64) int64 {
	memory := int64(cu * float64(UnitMemory))
	if o.MachineMemory > 0 {
		memory = min(memory, o.MachineMemory)
	}
	return memory
}

func kb(bytes int64) string { return strconv.FormatInt(bytes/1024, 10) + "kB" }

// MachineMemory is the machine's memory in bytes, 0 when the system does not say.
func MachineMemory() int64 {
	raw, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	var total int64
	if _, err := fmt.Sscanf(string(raw), "MemTotal: %d kB", &total); err != nil {
		return 0
	}
	return total * 1024
}
