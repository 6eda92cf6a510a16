package postgres

import (
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/boughdb/bough/internal/core"
)

const (
	maxSettings     = 200  // of one endpoint
	maxSettingBytes = 1000 // of one value
)

var settingName = regexp.MustCompile(`^[a-z_][a-z0-9_$]*(\.[a-z_][a-z0-9_$]*)*$`)

// settingKey is a setting's name as it is compared: names do not depend on case.
func settingKey(name string) string { return strings.ToLower(name) }

// mergeUser puts the user's settings over computed ones.
func mergeUser(s []Setting, user map[string]string) []Setting {
	lower := make(map[string]string, len(user))
	for _, name := range slices.Sorted(maps.Keys(user)) {
		lower[settingKey(name)] = user[name]
	}
	for _, key := range slices.Sorted(maps.Keys(lower)) {
		value := lower[key]
		if !settingName.MatchString(key) || refusedSetting(key, value) != "" || strings.ContainsRune(value, 0) {
			continue
		}
		if i := slices.IndexFunc(s, func(x Setting) bool { return x.Name == key }); i >= 0 {
			s[i].Value = value
		} else {
			s = append(s, Setting{key, value})
		}
	}
	return s
}

// reserved are the settings that are not the user's, each group with its reason. A name that ends in * stands for all that
// begin like it.
var reserved = []struct{ reason, names string }{
	{"no acknowledged commit may be lost", `fsync full_page_writes wal_sync_method wal_log_hints data_sync_retry
		ignore_checksum_failure zero_damaged_pages ignore_invalid_pages recovery_init_sync_method restart_after_crash
		synchronous_standby_names synchronized_standby_slots ignore_system_indexes`},
	{"it follows from the project's settings.enable_logical_replication", `wal_level`},
	{"branches, their forks and their history rest on it", `wal_recycle wal_init_zero max_wal_size min_wal_size wal_keep_size
		summarize_wal wal_summary_keep_time recovery_* restore_command archive_* hot_standby primary_* promote_trigger_file
		sync_replication_slots wal_receiver_create_temp_slot`},
	{"clients come through the proxy, which encrypts and authenticates", `listen_addresses port unix_socket_* bonjour* ssl ssl_*
		krb_* gss_* oauth_* db_user_namespace password_encryption authentication_timeout`},
	{"files and logs of a compute belong to the server", `data_directory config_file hba_file ident_file external_pid_file
		include* cluster_name event_source log_destination logging_collector log_directory log_filename log_file_mode log_rotation_*
		log_truncate_on_rotation log_line_prefix syslog_* stats_temp_directory lc_messages update_process_title`},
	{"choose what is preloaded with the project's settings.preload_libraries", `shared_preload_libraries
		session_preload_libraries local_preload_libraries`},
	{"a compute loads and runs only what its build brings", `dynamic_library_path extension_control_path jit_provider
		backtrace_functions plperl.* plpython* pltcl.* pljava.* plr.* sepgsql.* basic_archive.*`},
	{"it would let SQL reach the server's files", `postgis.gdal_* postgis.enable_outdb_rasters postgis.backend pgaudit.log_file*
		pgaudit.log_directory pgaudit.log_filename`},
	{"it follows from the machine and the compute's size", `huge_pages huge_page_size shared_memory_type dynamic_shared_memory_type
		max_files_per_process`},
	{"jobs run inside their compute", `cron.host cron.use_background_workers cron.enable_superuser_jobs`},
	{"the platform rests on it", `superuser_reserved_connections track_activities allow_alter_system allow_system_table_mods
		allow_in_place_tablespaces session_replication_role restrict_nonsystem_relation_kind event_triggers role session_authorization
		debug_* trace_* bough.*`},
}

var reservedNames, reservedPrefixes = indexReserved()

func indexReserved() (names map[string]string, prefixes map[string]string) {
	names, prefixes = map[string]string{}, map[string]string{}
	for _, group := range reserved {
		for name := range strings.FieldsSeq(group.names) {
			if prefix, ok := strings.CutSuffix(name, "*"); ok {
				prefixes[prefix] = group.reason
			} else {
				names[name] = group.reason
			}
		}
	}
	return names, prefixes
}

// refusedSetting returns why a setting, or this value of it, is not the user's to choose; "" when it is.
func refusedSetting(key, value string) string {
	if reason := reservedNames[key]; reason != "" {
		return reason
	}
	if recoverySetting(key) {
		return reservedPrefixes["recovery_"]
	}
	for prefix, reason := range reservedPrefixes {
		if strings.HasPrefix(key, prefix) {
			return reason
		}
	}
	switch {
	case key == "io_method" && strings.EqualFold(value, "io_uring"):
		return "not every machine lets computes start with io_uring; worker and sync are accepted"
	case key == "max_slot_wal_keep_size" && strings.HasPrefix(strings.TrimSpace(value), "-"):
		return "without a limit one forgotten slot fills the disk for all"
	case key == "pg_partman_bgw.role" && slices.ContainsFunc(strings.Split(value, ","), func(r string) bool { return ReservedRole(strings.Trim(r, ` "`)) }):
		return "maintenance must run as a role of yours"
	}
	return ""
}

// floors are the least values of settings that the platform uses itself.
var floors = map[string]int64{
	"max_connections": 25, "max_wal_senders": 10, "max_replication_slots": 10, "max_worker_processes": 8,
}

// CheckSettings refuses settings that the platform keeps for itself or that cannot be written down. Whether a build knows a
// setting and takes its value is the Inspector's question.
func CheckSettings(settings map[string]string) error {
	if len(settings) > maxSettings {
		return core.Invalidf("pg_settings: %d settings are too many; the limit is %d", len(settings), maxSettings)
	}
	seen := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		key, value := settingKey(name), settings[name]
		switch {
		case len(key) > maxNameBytes || !settingName.MatchString(key):
			return core.Invalidf("pg_settings: %q is not a setting's name", clip(name))
		case seen[key] != "":
			return core.Invalidf("pg_settings: %q and %q are the same setting; leave one out", seen[key], name)
		case strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' && r != '\n' }) || len(value) > maxSettingBytes:
			return core.Invalidf("pg_settings: the value of %q is longer than %d bytes or holds control characters", name, maxSettingBytes)
		}
		seen[key] = name
		if reason := refusedSetting(key, value); reason != "" {
			return core.Invalidf("pg_settings: %q cannot be set: %s", name, reason)
		}
	}
	return nil
}

// clip keeps a hostile value short in a message.
func clip(s string) string {
	if len(s) > maxNameBytes {
		return s[:maxNameBytes] + "…"
	}
	return s
}

// ChangedSettings lists the settings that are not the same in both, lower case, sorted.
func ChangedSettings(before, after map[string]string) []string {
	merged := map[string][2]*string{}
	for i, m := range []map[string]string{before, after} {
		for name, value := range m {
			pair := merged[settingKey(name)]
			pair[i] = &value
			merged[settingKey(name)] = pair
		}
	}
	var changed []string
	for key, pair := range merged {
		if pair[0] == nil || pair[1] == nil || *pair[0] != *pair[1] {
			changed = append(changed, key)
		}
	}
	slices.Sort(changed)
	return changed
}
