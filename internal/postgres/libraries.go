package postgres

import (
	"bufio"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/boughdb/bough/internal/core"
)

// Library is a module that may be preloaded into every process of a compute.
type Library struct {
	Name         string
	Description  string
	Version      string // of its extension, or of the build for modules without one
	Default      bool   // preloaded unless the project says otherwise
	Experimental bool
}

// knownLibraries are the modules that are made to be preloaded and do nothing that a compute's owner may not, in the order in
// which they are loaded. Whatever else is installed is not offered: many modules are not safe to preload.
var knownLibraries = []Library{
	{Name: "citus", Description: "Distributed tables and columnar storage", Experimental: true}, // wants to be the first
	{Name: "timescaledb", Description: "Time-series tables, compression and continuous aggregates"},
	{Name: "pg_stat_statements", Description: "Statistics of the statements that were run", Default: true},
	{Name: "auto_explain", Description: "Logs the plans of slow statements"},
	{Name: "pgaudit", Description: "Logs who read and changed what"},
	{Name: "pg_cron", Description: "Runs SQL on a schedule"},
	{Name: "pg_hint_plan", Description: "Plans that follow hints in comments"},
	{Name: "pg_ivm", Description: "Materialized views that follow their tables", Experimental: true},
	{Name: "pg_partman_bgw", Description: "Maintains the partitions of pg_partman in the background"},
	{Name: "pg_prewarm", Description: "Fills the buffer cache after a start with what it held before"},
	{Name: "pg_qualstats", Description: "Statistics of conditions, to find missing indexes"},
	{Name: "pg_stat_kcache", Description: "Reads and CPU time of each statement"},
	{Name: "pg_stat_monitor", Description: "Statistics of statements in time buckets", Experimental: true},
	{Name: "pg_wait_sampling", Description: "Samples what sessions wait for"},
	{Name: "passwordcheck", Description: "Refuses weak passwords that are set in SQL"},
	{Name: "plan_filter", Description: "Refuses statements whose plan costs too much"},
}

// extensionOf names the extension of a library where it is called otherwise.
var extensionOf = map[string]string{"pg_partman_bgw": "pg_partman"}

// Libraries lists what this build can preload, in loading order.
func (b Build) Libraries() []Library {
	var have []Library
	for _, l := range knownLibraries {
		if !b.HasLibrary(l.Name) {
			continue
		}
		extension := l.Name
		if other := extensionOf[l.Name]; other != "" {
			extension = other
		}
		if l.Version = b.extensionVersion(extension); l.Version == "" {
			l.Version = b.Version
		}
		have = append(have, l)
	}
	return have
}

// extensionVersion is the default version of an extension as its control file says, "" when there is none.
func (b Build) extensionVersion(name string) string {
	share, ok := b.shareDir()
	if !ok {
		return ""
	}
	f, err := os.Open(filepath.Join(share, "extension", name+".control"))
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if key, value := controlLine(lines.Text()); key == "default_version" {
			return value
		}
	}
	return ""
}

// controlLine reads a line of an extension's control file, which has the form of postgresql.conf. key is "" when it says
// nothing.
func controlLine(line string) (key, value string) {
	line = strings.TrimSpace(line)
	key, value, ok := strings.Cut(line, "=")
	if !ok || strings.HasPrefix(line, "#") {
		return "", ""
	}
	value = strings.TrimSpace(value)
	if quoted, ok := strings.CutPrefix(value, "'"); ok {
		value, _, _ = strings.Cut(quoted, "'")
	} else {
		value, _, _ = strings.Cut(value, "#")
	}
	return strings.ToLower(strings.TrimSpace(key)), strings.TrimSpace(value)
}

// CheckLibraries refuses names that this build cannot preload.
func (b Build) CheckLibraries(names []string) error {
	if len(names) == 0 {
		return nil
	}
	var have []string
	for _, l := range b.Libraries() {
		have = append(have, l.Name)
	}
	for _, name := range names {
		if !slices.Contains(have, name) {
			return core.Invalidf("preload_libraries: %q is not among the libraries that PostgreSQL %d can preload here; available: %s",
				clip(name), b.Major, strings.Join(have, ", "))
		}
	}
	return nil
}

// PreloadList is what a compute preloads: the defaults, if asked for, and the named ones, in loading order. A library that is
// no longer installed is left out, so that the compute starts without it.
func (b Build) PreloadList(defaults bool, names []string) []string {
	var list []string
	for _, l := range b.Libraries() {
		if (defaults && l.Default) || slices.Contains(names, l.Name) {
			list = append(list, l.Name)
		}
	}
	return list
}

// librarySettings are what preloaded libraries need to work here; users may set them otherwise where they are theirs.
func librarySettings(preload []string, database string) []Setting {
	if database == "" {
		database = DefaultDatabase
	}
	var s []Setting
	for _, name := range preload {
		switch name {
		case "pg_cron":
			// Without background workers it would connect over TCP, where nothing listens.
			s = append(s, Setting{"cron.database_name", database}, Setting{"cron.use_background_workers", "on"})
		case "timescaledb":
			s = append(s, Setting{"timescaledb.telemetry_level", "off"}) // nothing leaves the machine
		case "pg_partman_bgw":
			s = append(s, Setting{"pg_partman_bgw.dbname", database})
		}
	}
	return s
}
