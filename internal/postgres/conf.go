package postgres

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/boughdb/bough/internal/core"
)

// Everyone is let in who can open the socket: its folder belongs to the server's OS user alone, and the proxy has
// authenticated the client already. But what runs inside a compute (dblink, a foreign table, a worker of an extension) can open
// sockets, too, those of other computes among them: where the platform has another OS user than the servers, only it gets
// sessions of the superuser.
const (
	confHead  = "# Written by Bough before every start; changes are lost.\n"
	hbaConf   = "local all all trust\nlocal replication " + AdminRole + " trust\n" // the latter is for replicas, which stream as the servers' OS user
	hbaAdmin  = "local all " + AdminRole + " peer map=platform\n"
	identConf = "platform %s " + AdminRole + "\n"
)

// accessConf is the content of pg_hba.conf and pg_ident.conf.
func accessConf(cred *syscall.Credential) (hba, ident string) {
	hba, ident = confHead+hbaConf, confHead
	if cred == nil || int(cred.Uid) == os.Geteuid() {
		return hba, ident
	}
	me, err := user.LookupId(strconv.Itoa(os.Geteuid()))
	if err != nil {
		return hba, ident
	}
	return confHead + hbaAdmin + hbaConf, ident + fmt.Sprintf(identConf, strconv.Quote(me.Username))
}

// WriteConfig makes the cluster's configuration files say exactly what settings say. Files that already do are left alone,
// so that waking costs no writes. cred is the server's OS user, nil when it is the caller's.
//
// The files are not synced: they are compared and written again before every start, so a machine that crashes loses nothing.
func WriteConfig(dataDir string, settings []Setting, cred *syscall.Credential) error {
	hba, ident := accessConf(cred)
	files := []struct{ name, content string }{
		{"postgresql.conf", renderConf(settings)},
		{"pg_hba.conf", hba},
		{"pg_ident.conf", ident},
	}
	for _, f := range files {
		if err := replaceFile(filepath.Join(dataDir, f.name), []byte(f.content), cred, false); err != nil {
			return core.Wrap(err, "postgres.write_config", "")
		}
	}
	return nil
}

func renderConf(settings []Setting) string {
	var b strings.Builder
	b.WriteString("# Written by Bough before every start; changes are lost. Use the endpoint's pg_settings.\n")
	for _, s := range settings {
		b.WriteString(s.Name + " = " + quoteValue(s.Value) + "\n")
	}
	return b.String()
}

// quoteValue writes a value the way guc-file.l reads it: single quotes doubled, backslashes escaped, one line.
func quoteValue(v string) string {
	r := strings.NewReplacer(`'`, `''`, `\`, `\\`, "\n", `\n`, "\r", `\r`, "\t", `\t`)
	return "'" + r.Replace(v) + "'"
}

// replaceFile puts content under path through a temporary name. A file that holds it already is not touched.
func replaceFile(path string, content []byte, cred *syscall.Credential, durable bool) (err error) {
	info, err := os.Lstat(path)
	if err == nil && info.Mode().IsRegular() && info.Size() == int64(len(content)) {
		if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, content) {
			return nil
		}
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".bough-*.tmp") // 0600, and never through a symbolic link
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if _, err = f.Write(content); err != nil {
		return err
	}
	if cred != nil {
		if err = f.Chown(int(cred.Uid), int(cred.Gid)); err != nil {
			return err
		}
	}
	if durable {
		if err = f.Sync(); err != nil {
			return err
		}
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	if durable {
		return syncDir(filepath.Dir(path))
	}
	return nil
}

// recoverySetting tells settings that point a cluster at another one's WAL.
func recoverySetting(name string) bool {
	name = strings.ToLower(name)
	switch name {
	case "primary_conninfo", "primary_slot_name", "restore_command", "recovery_end_command", "archive_cleanup_command",
		"promote_trigger_file", "recovery_min_apply_delay", "hot_standby", "archive_command", "archive_library", "archive_mode",
		"synchronous_standby_names", "synchronized_standby_slots":
		return true
	}
	return strings.HasPrefix(name, "recovery_target")
}

// cleanAutoConf drops recovery settings from postgresql.auto.conf and keeps everything else as ALTER SYSTEM wrote it.
func cleanAutoConf(dataDir string) error {
	path := filepath.Join(dataDir, "postgresql.auto.conf")
	old, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	var kept strings.Builder
	for _, line := range strings.SplitAfter(string(old), "\n") {
		name, _, _ := strings.Cut(strings.TrimSpace(line), "=")
		if !recoverySetting(strings.TrimSpace(name)) {
			kept.WriteString(line)
		}
	}
	if kept.String() == string(old) {
		return nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	var cred *syscall.Credential
	if st, ok := info.Sys().(*syscall.Stat_t); ok && os.Geteuid() == 0 {
		cred = &syscall.Credential{Uid: st.Uid, Gid: st.Gid}
	}
	return replaceFile(path, []byte(kept.String()), cred, true)
}
