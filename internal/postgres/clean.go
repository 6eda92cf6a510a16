package postgres

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/boughdb/bough/internal/core"
)

// inheritedFiles must not come along from a parent: lock files, signal files of an earlier recovery, and what is left of an
// earlier backup. A live backup_label and tablespace_map stay: they belong to this very copy.
var inheritedFiles = []string{
	"postmaster.pid", "postmaster.opts", "standby.signal", "recovery.signal", "promote", "fallback_promote", "logrotate",
	"recovery.conf", "recovery.done", "backup_label.old", "tablespace_map.old", "current_logfiles",
}

// inheritedContents are folders that stay, empty.
var inheritedContents = []string{"pg_replslot", "pg_dynshmem", "pg_stat_tmp"}

// CleanChild removes from a copied data directory what would tie it to its parent, and the recovery settings that the
// parent's postgresql.auto.conf may hold. The folder must not be in use. Running it again changes nothing; the removals
// are durable when it returns.
func CleanChild(dataDir string) error {
	const op = "postgres.clean_child"
	changed := map[string]bool{}
	for _, name := range inheritedFiles {
		err := os.Remove(filepath.Join(dataDir, name))
		if err == nil {
			changed[dataDir] = true
		} else if !errors.Is(err, fs.ErrNotExist) {
			return core.Wrap(err, op, "")
		}
	}
	for _, name := range inheritedContents {
		dir := filepath.Join(dataDir, name)
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return core.Wrap(err, op, "")
		}
		for _, e := range entries {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return core.Wrap(err, op, "")
			}
			changed[dir] = true
		}
	}
	if err := cleanAutoConf(dataDir); err != nil {
		return core.Wrap(err, op, "")
	}
	for dir := range changed {
		if err := syncDir(dir); err != nil {
			return core.Wrap(err, op, "")
		}
	}
	return nil
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = f.Sync()
	return errors.Join(err, f.Close())
}
