package service

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/boughdb/bough/internal/control"
	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/postgres"
	"github.com/boughdb/bough/internal/storage"
)

// checks compares what the service owns: files for clients, secrets, sockets, space. See control.ReconcileOptions.
func (s *Server) checks(ctx context.Context) []control.Finding {
	var out []control.Finding
	if !s.fleet.Leads() {
		return nil
	}
	if s.admin.APIKey != "" { // the start is over
		out = append(out, s.checkAdminFile()...)
	}
	out = append(out, s.checkSockets()...)
	out = append(out, checkSecrets(s.layout)...)
	if space, err := s.control.Volumes.Space(ctx); err == nil {
		out = append(out, spaceFindings(space)...)
	}
	return out
}

func (s *Server) checkAdminFile() []control.Finding {
	path := s.layout.admin()
	f := control.Finding{Kind: control.DriftAdminFile, Subject: path, Will: "write it again",
		Repair: func(context.Context) error { return s.saveAdmin() }}
	info, err := os.Lstat(path)
	raw, readErr := os.ReadFile(path)
	var have AdminFile
	switch {
	case errors.Is(err, fs.ErrNotExist):
		f.Problem = path + " is gone: clients on this machine do not find the server."
	case err != nil || readErr != nil:
		return nil
	case json.Unmarshal(raw, &have) != nil || have != s.admin:
		f.Problem = path + " does not say what the server wrote: clients on this machine may not find it."
	case info.Mode().Perm() != 0o600:
		f.Problem = fmt.Sprintf("%s has mode %#o and holds a key: others may read it.", path, info.Mode().Perm())
		f.Advice = "if others may have read it: make another key (bough admin keys create) and revoke this one"
	default:
		return nil
	}
	return []control.Finding{f}
}

func (s *Server) checkSockets() []control.Finding {
	var out []control.Finding
	if s.cfg.DatabaseURL == "" && gone(filepath.Join(s.layout.controlSocket(), postgres.SocketName)) {
		out = append(out, control.Finding{Kind: control.DriftControlDatabase, Subject: s.layout.controlSocket(),
			Problem: "The control database's socket was removed: the server works with the sessions it has, and cannot open new ones.",
			Advice:  "restart the server; it restarts the control database, and computes run on"})
	}
	if gone(s.layout.operatorSocket()) {
		out = append(out, control.Finding{Kind: control.DriftServer, Subject: s.layout.operatorSocket(), Will: "listen again",
			Problem: "The socket for the operator's verbs was removed.",
			Repair:  func(ctx context.Context) error { return s.operator.Start(ctx) }})
	}
	return out
}

// checkSecrets looks after the files without which stored passwords cannot be read, or which others must not read.
func checkSecrets(l layout) []control.Finding {
	var out []control.Finding
	key := l.path("keys", "passwords.key")
	if gone(key) && !gone(l.identity()) {
		out = append(out, control.Finding{Kind: control.DriftSecrets, Subject: key,
			Problem: "The key of the stored role passwords, " + key + ", is gone.",
			Advice:  "restore it from a backup before the server restarts; without it the stored passwords are lost and must be reset"})
	}
	for _, path := range []string{key, l.path("certs", "ca.key"), l.path("certs", "server.pem")} {
		if info, err := os.Lstat(path); err == nil && info.Mode().Perm()&0o077 != 0 {
			out = append(out, control.Finding{Kind: control.DriftSecrets, Subject: path,
				Problem: fmt.Sprintf("%s has mode %#o: others may read it.", path, info.Mode().Perm()), Advice: "chmod 600 " + path})
		}
	}
	return out
}

func spaceFindings(space storage.Space) []control.Finding {
	var out []control.Finding
	for place, room := range map[string]storage.Room{"on the disk": space.Host, "in the pool": space.Pool} {
		f := control.Finding{Kind: control.DriftSpace, Subject: place, Now: true,
			Advice: "delete branches or projects that are not needed, or add disk space"}
		switch room.Level() {
		case storage.LevelRefuse:
			f.Problem = fmt.Sprintf("Only %.1f GiB are free %s, less than the reserve of %.1f GiB: new branches are refused.", gib(room.Free), place, gib(room.Reserve))
		case storage.LevelCritical:
			f.Problem = fmt.Sprintf("Only %.1f GiB are free %s, less than half of the reserve of %.1f GiB: computes are suspended.", gib(room.Free), place, gib(room.Reserve))
		default:
			continue
		}
		out = append(out, f)
	}
	return out
}

func gib(n int64) float64 { return float64(n) / (1 << 30) }

// gone tells that there is nothing at path, and that this is certain.
func gone(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, fs.ErrNotExist)
}

// saveAdmin writes admin.json as the server knows it.
func (s *Server) saveAdmin() error {
	raw, err := json.MarshalIndent(s.admin, "", "  ")
	if err != nil {
		return core.Wrap(err, "service.admin", "")
	}
	return writeFile(s.layout.admin(), append(raw, '\n'), 0o600)
}

// statOwner is os.Stat with the owner's ids.
func statOwner(path string) (info os.FileInfo, uid, gid int, err error) {
	if info, err = os.Stat(path); err != nil {
		return nil, 0, 0, err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		uid, gid = int(st.Uid), int(st.Gid)
	}
	return info, uid, gid, nil
}
