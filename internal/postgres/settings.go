package postgres

import (
	"fmt"
	"maps"
	"math"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/boughdb/bough/internal/core"
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

// SameSettings tells whether servers of two sizes have the same settings: a running one can go from one to the other.
func SameSettings(a, b SizeSpec, machineMemory int64) bool {
	return slices.Equal(Config(ConfigOptions{Size: a, MachineMemory: machineMemory}), Config(ConfigOptions{Size: b, MachineMemory: machineMemory}))
}

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
	PGSettings         map[string]string // the user's own; see ValidateSettings
}

// Config computes the whole postgresql.conf of a compute, in a stable order. User settings replace computed ones except those
// that ValidateSettings refuses, which are ignored here.
func Config(o ConfigOptions) []Setting {
	size := o.Size.units()
	maxConns := max(100, min(4000, int(size*419.66)))
	maxCU := max(o.Size.MaxCU, o.Size.MinCU)
	memory := int64(size * float64(UnitMemory))
	if o.MachineMemory > 0 {
		memory = min(memory, o.MachineMemory)
	}
	walLevel := "replica"
	if o.LogicalReplication {
		walLevel = "logical"
	}
	shared := max(16*mib, memory/4)
	preload := []string{}
	if o.Build.HasLibrary("pg_stat_statements") {
		preload = append(preload, "pg_stat_statements")
	}

	s := []Setting{
		// From the compute's size.
		{"max_connections", strconv.Itoa(maxConns)},
		{"max_worker_processes", strconv.Itoa(12 + int(math.Floor(2*maxCU)))},
		{"shared_buffers", kb(shared)},
		{"effective_cache_size", kb(max(64*mib, memory*3/4))},
		{"maintenance_work_mem", kb(max(64*mib, min(gib, memory/32)))},

		// As clients of the API know it.
		{"wal_level", walLevel},
		{"max_wal_senders", "10"},
		{"max_replication_slots", "10"},
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
	if len(preload) > 0 {
		s = append(s, Setting{"shared_preload_libraries", strings.Join(preload, ",")})
	}
	return mergeUser(s, o.PGSettings, preload)
}

func mergeUser(s []Setting, user map[string]string, preload []string) []Setting {
	lower := make(map[string]string, len(user)) // setting names do not depend on case
	for _, name := range slices.Sorted(maps.Keys(user)) {
		lower[strings.ToLower(name)] = user[name]
	}
	for _, key := range slices.Sorted(maps.Keys(lower)) {
		value := lower[key]
		if !settingName.MatchString(key) || protected(key) || strings.ContainsRune(value, 0) {
			continue
		}
		if key == "shared_preload_libraries" {
			value = mergeList(preload, value)
		}
		if i := slices.IndexFunc(s, func(x Setting) bool { return x.Name == key }); i >= 0 {
			s[i].Value = value
		} else {
			s = append(s, Setting{key, value})
		}
	}
	return s
}

// mergeList adds the names of a comma-separated list that ours does not hold yet.
func mergeList(ours []string, theirs string) string {
	out := slices.Clone(ours)
	for name := range strings.SplitSeq(theirs, ",") {
		if name = strings.TrimSpace(name); name != "" && !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return strings.Join(out, ",")
}

func kb(bytes int64) string { return strconv.FormatInt(bytes/1024, 10) + "kB" }

var settingName = regexp.MustCompile(`^[a-z_][a-z0-9_$]*(\.[a-z_][a-z0-9_$]*)*$`)

// protected tells settings that durability, branching or isolation rest on.
func protected(name string) bool {
	switch name {
	case "fsync", "full_page_writes", "wal_recycle", "recovery_init_sync_method", "huge_pages", "wal_level", "wal_log_hints",
		"listen_addresses", "port", "unix_socket_directories", "unix_socket_group", "unix_socket_permissions", "bonjour", "ssl",
		"data_directory", "config_file", "hba_file", "ident_file", "external_pid_file", "cluster_name", "event_source",
		"log_destination", "logging_collector", "log_directory", "log_filename", "log_file_mode", "lc_messages",
		"include", "include_dir", "include_if_exists", "dynamic_library_path", "krb_server_keyfile",
		"extension_control_path", "data_sync_retry", "ignore_checksum_failure", "zero_damaged_pages", "ignore_invalid_pages",
		"allow_system_table_mods", "allow_in_place_tablespaces", "restart_after_crash", "shared_memory_type", "superuser_reserved_connections",
		"max_wal_size", "min_wal_size", "promote_trigger_file", "ssl_passphrase_command", "archive_timeout":
		return true
	}
	return recoverySetting(name) || strings.HasPrefix(name, "archive_") || strings.HasPrefix(name, "ssl_") || strings.HasPrefix(name, "debug_")
}

// ValidateSettings refuses user settings that the platform keeps for itself or that cannot be written down. Whether the
// server knows a setting is found out when it starts.
func ValidateSettings(settings map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		key, value := strings.ToLower(name), settings[name]
		switch {
		case len(key) > maxNameBytes || !settingName.MatchString(key):
			return core.Invalidf("pg_settings: %q is not a setting's name", name)
		case protected(key):
			return core.Invalidf("pg_settings: %q is managed by the platform and cannot be set", name)
		case strings.ContainsRune(value, 0) || len(value) > 1000:
			return core.Invalidf("pg_settings: the value of %q is too long or holds a zero byte", name)
		}
	}
	return nil
}

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
