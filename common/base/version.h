/* The project's version, one number for all programs. */
#ifndef NOSA_BASE_VERSION_H
#define NOSA_BASE_VERSION_H

/* e.g. "0.1.0"; static. */
const char *nosa_version(void);

#endif
